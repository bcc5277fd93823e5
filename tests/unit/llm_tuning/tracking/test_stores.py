"""Which store a tracking URI means, what is refused, and what is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from llm_tuning.tracking import Tracker, check_tracking_uri, redact
from llm_tuning.tracking.stores import describe_fault, resolve_store


@pytest.mark.parametrize("uri", ["./mlruns", "mlruns", "file:mlruns", "file://{cwd}/mlruns", "{cwd}/mlruns"])
def test_a_plain_folder_means_a_sqlite_store_inside_it(tmp_path: Path, uri: str) -> None:
    if uri == "file:mlruns":
        uri = f"file:{tmp_path}/mlruns"
    store = resolve_store(uri.format(cwd=tmp_path))
    assert store.uri == store.shown == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert store.artifact_location == f"file://{tmp_path}/mlruns/artifacts"
    assert store.is_local
    assert not (tmp_path / "mlruns").exists(), "looking makes nothing"


def test_a_folder_with_a_file_store_stays_one(tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    store = resolve_store("./mlruns")
    assert store.is_file_store
    assert store.uri == f"file://{tmp_path}/mlruns"
    (tmp_path / "mlruns" / "mlflow.db").touch()
    assert not resolve_store("./mlruns").is_file_store, "unless it was migrated"


@pytest.mark.parametrize(
    ("uri", "shown", "local"),
    [
        ("http://host:5000", "http://host:5000", False),
        ("https://user:p@ss@host/mlflow", "https://***@host/mlflow", False),
        ("sqlite:///a.db", "sqlite:///a.db", True),
        ("postgresql+psycopg2://u:p@db/x?password=secret", "postgresql+psycopg2://***@db/x", False),
        ("databricks", "databricks", False),
        ("databricks://profile", "databricks://profile", False),
    ],
)
def test_other_uris_pass_through_and_are_shown_without_credentials(uri: str, shown: str, local: bool) -> None:
    store = resolve_store(uri)
    assert (store.uri, store.shown, store.is_local, store.artifact_location) == (uri, shown, local, None)
    assert check_tracking_uri(uri) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://", "names no server"),
        ("http://:5000", "names no server"),
        ("http://host:port", "is not a URI"),
        ("http://[::1", "is not a URI"),
        ("localhost:5000", "write it as http://localhost:5000"),
        (
            "ftp://host/x",
            "has a scheme that MLflow does not know, got 'ftp://host/x'; known are: a folder, databricks, ",
        ),
        ("ftp://me:secret@host/x", "got 'ftp://***@host/x'"),
        ("a-file", "must be a folder or a URI, but a-file is a file"),
        ("what?/mlruns", "must be a folder without ? in its path"),
    ],
)
def test_what_cannot_be_a_uri_is_refused_in_one_sentence(uri: str, message: str) -> None:
    Path("a-file").touch()
    [problem] = check_tracking_uri(uri)
    assert problem.where == "tracking.uri"
    assert message in str(problem)
    assert "secret" not in str(problem)


def test_a_run_refuses_it_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tracking\.uri: names no server"):
        Tracker.start("http://", "e", run_name="m", work_dir=tmp_path / "work", params={}, tags={})
    assert not (tmp_path / "work").exists()


def test_credentials_are_cut_out_of_any_text() -> None:
    text = "API request to http://me:p%40ss@host:5000/api failed; 'mysql://root:@db/x' too, see me@host and http://host"
    assert redact(text) == (
        "API request to http://***@host:5000/api failed; 'mysql://***@db/x' too, see me@host and http://host"
    )


def test_a_fault_is_its_innermost_cause() -> None:
    wrapped = RuntimeError("API request failed with exception HTTPConnectionPool(...)")
    wrapped.__cause__ = ConnectionRefusedError(111, "Connection refused")
    assert describe_fault(wrapped) == "connection refused"
    assert describe_fault(TimeoutError("timed out")) == "no answer in time"
    assert describe_fault(ModuleNotFoundError("No module named 'mlflow'", name="mlflow")) == "mlflow is not installed"
    assert describe_fault(LookupError("experiment 'x' is deleted there")) == "experiment 'x' is deleted there"
