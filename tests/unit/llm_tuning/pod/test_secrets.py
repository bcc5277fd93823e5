from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from llm_tuning.pod.secrets import ScrubbingFormatter, scrub
from llm_tuning.run.spec import read_run_spec
from tests.support.models import write_run

SECRET = "canary-7f3a"
URI = f"https://user:{SECRET}@tracking:5000/mlflow?password={SECRET}"


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_pass"]
)
def test_the_value_of_a_secret_variable_is_in_no_text(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert scrub(f"refused {SECRET} at https://a:b@host/x") == "refused *** at https://***@host/x"


def test_ordinary_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", "/var/run/token")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("EMPTY_PASSWORD", "")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert scrub("a false /var/run/token") == "a false /var/run/token"


def test_tracebacks_are_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    try:
        raise RuntimeError(SECRET)
    except RuntimeError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "failed", (), (RuntimeError, error, error.__traceback__))
    text = ScrubbingFormatter("%(message)s").format(record)
    assert "RuntimeError: ***" in text
    assert SECRET not in text


def test_the_work_folder_never_holds_the_uris_password_and_a_worker_is_given_it(tmp_path: Path) -> None:
    spec = write_run(tmp_path, "m", tracking={"uri": URI})
    text = (spec.work / "run.json").read_text()
    assert SECRET not in text
    assert json.loads(text)["config"]["tracking"]["uri"] == "https://***@tracking:5000/mlflow"
    read = read_run_spec(spec.work)
    assert read is not None
    assert read.with_tracking_uri(URI) == spec
