"""Runs in MLflow: on real servers and stores, alive, killed, silent and refusing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.tracking import SERVER_BUDGET_SECONDS, Tracker, TrackingResult, tracker
from llm_tuning.tracking.mlflow_run import ADAPTER_PATH_TAG
from llm_tuning.tracking.outbox import SenderState, read_state
from tests.support.mlflow_server import MlflowServer
from tests.support.status_server import closed_port, silent_server

NO_ANSWER = f"no answer within {SERVER_BUDGET_SECONDS:g} s"

PARAMS = {"training.learning_rate": 2e-4, "lora.rank": 16, "lora.target_modules": "q_proj," * 1000}
TAGS = {"mode": "sft", "base": "tiny-llama", "version": "0.1.0"}
DATASET = {"path": "data/faq.json", "hash": "sha256:" + "ab" * 32, "rows": 100, "kept": 97}
STEPS = 40
TOGETHER = ("faq-v1", "faq-v2", "faq v3")


@dataclass(frozen=True)
class DefaultStore:
    """A folder in which three runs met: its `mlruns` was not there when they started."""

    folder: Path
    results: list[TrackingResult]


@pytest.fixture(scope="module")
def default_store(tmp_path_factory: pytest.TempPathFactory) -> DefaultStore:
    folder = tmp_path_factory.mktemp("default-store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runs = [start("./mlruns", folder / name, name) for name in TOGETHER]
        for run in runs:
            log_steps(run, 1, 5)
        adapter = make_adapter(folder / "adapter")
        return DefaultStore(folder, [run.finish("FINISHED", adapter) for run in runs])


@pytest.fixture(scope="module")
def server(default_store: DefaultStore) -> Iterator[MlflowServer]:
    """`mlflow ui` on that store: a real server, which the other tests use over HTTP."""
    store = default_store.results[0].uri
    assert store is not None
    server = MlflowServer(default_store.folder, store).start()
    yield server
    server.kill()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what arrives at a living server: a slow test machine is not a slow server."""
    monkeypatch.setattr(tracker, "SERVER_BUDGET_SECONDS", 60.0)


def start(uri: str | None, work: Path, model_id: str = "faq-v1", **changes: Any) -> Tracker:
    work.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {"params": PARAMS, "tags": TAGS | {"model_id": model_id}, "dataset": DATASET}
    return Tracker.start(uri, "experiment", run_name=model_id, work_dir=work, **given | changes)


def log_steps(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.log(step, {"train/loss": 1 / step, "train/tokens": 10})


def wait_for(work: Path, known: Callable[[SenderState], bool]) -> SenderState:
    """The sender's state as soon as it is `known`: the training that goes on in the meantime."""
    deadline = time.monotonic() + 120
    while not known(state := read_state(work)):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def make_adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("model.json", "README.md", "loss_curve.png", "parity.json", "adapter_model.safetensors"):
        (folder / name).write_text(name)
    return folder


def client_of(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def loss_steps(client: Any, run_id: str | None) -> list[int]:
    return sorted(metric.step for metric in client.get_metric_history(run_id, "train/loss"))


# A server that is there


@pytest.mark.usefixtures("patient")
def test_a_whole_run_is_in_mlflow(server: MlflowServer, tmp_path: Path) -> None:
    work, adapter = tmp_path / "work", make_adapter(tmp_path / "models" / "faq-v1")
    run = start(server.url, work)
    run.resume(0)
    log_steps(run, 1, STEPS)
    run.log(STEPS, {"eval/loss": 0.5, "eval/nan": float("nan")})
    wait_for(work, lambda state: state.run_id is not None)
    run_id = run.run_id
    result = run.finish("FINISHED", adapter, {"hardware.device": "NVIDIA H200"})
    assert result == TrackingResult(run_id, server.url, "experiment", unsent=0, note=None)

    client = client_of(server.url)
    kept = client.get_run(run_id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "faq-v1"
    assert client.get_experiment(kept.info.experiment_id).name == "experiment"
    assert kept.data.params["lora.rank"] == "16"
    assert kept.data.params["lora.target_modules"] == ("q_proj," * 1000)[:1000]
    assert kept.data.tags.items() >= {**TAGS, "model_id": "faq-v1", ADAPTER_PATH_TAG: str(adapter)}.items()
    assert kept.data.tags["hardware.device"] == "NVIDIA H200", "what is known at the end only"
    assert loss_steps(client, run_id) == list(range(1, STEPS + 1))
    assert kept.data.metrics["eval/loss"] == 0.5
    [used] = kept.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("faq.json", ("ab" * 32)[:36])
    assert json.loads(used.dataset.profile) == {"rows": 100, "kept": 97}
    uploaded = {file.path for file in client.list_artifacts(run_id)}
    assert uploaded == {"model.json", "README.md", "loss_curve.png"}, "no weights, and no rows of the dataset"


def test_a_server_killed_in_the_middle_of_two_runs(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run ends while it is dead and costs at most five seconds; the other when it is back, and is complete."""
    works = [tmp_path / "ends-without", tmp_path / "ends-with"]
    without = start(server.url, works[0])
    monkeypatch.setattr(tracker, "SERVER_BUDGET_SECONDS", 60.0)  # see `patient`
    with_server = start(server.url, works[1])
    for run in (without, with_server):
        log_steps(run, 1, STEPS // 2)
    run_ids = [wait_for(work, lambda state: state.sent.get("train/loss") == STEPS // 2).run_id for work in works]
    server.kill()
    try:
        for run in (without, with_server):
            log_steps(run, STEPS // 2 + 1, STEPS)
        assert wait_for(works[1], lambda state: state.fault is not None).fault == "connection refused"

        began = time.monotonic()
        assert without.run_id == run_ids[0], "known without asking"
        result = without.finish("FINISHED")
        assert time.monotonic() - began <= SERVER_BUDGET_SECONDS + 1.0
        assert (result.run_id, result.unsent) == (run_ids[0], STEPS // 2)
        assert "stay in metrics.jsonl" in (result.note or "")
    finally:
        server.start()
    assert with_server.finish("FINISHED") == TrackingResult(run_ids[1], server.url, "experiment", unsent=0, note=None)
    client = client_of(server.url)
    assert loss_steps(client, run_ids[0]) == list(range(1, STEPS // 2 + 1))
    assert loss_steps(client, run_ids[1]) == list(range(1, STEPS + 1))
    assert client.get_run(run_ids[1]).info.status == "FINISHED"


# A server that is not there: five seconds in all, and the metrics stay


@contextmanager
def refusing_server() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET  # noqa: N815 - http.server's names

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def dead_server() -> Iterator[str]:
    yield closed_port()


@pytest.mark.parametrize(
    ("unwell", "reasons"),
    [
        (dead_server, ("connection refused", NO_ANSWER)),
        (silent_server, ("no answer in time", NO_ANSWER)),
        (refusing_server, ("too many 500 error responses", NO_ANSWER)),
    ],
)
def test_an_unwell_server_costs_at_most_five_seconds_and_no_metrics(
    tmp_path: Path, unwell: Callable[[], Any], reasons: tuple[str, ...]
) -> None:
    work, adapter = tmp_path / "work", make_adapter(tmp_path / "adapter")
    with unwell() as address:
        began = time.monotonic()
        run = start(f"http://user:secret@{address}", work)
        run.resume(0)
        log_steps(run, 1, STEPS)
        assert run.run_id is None
        result = run.finish("FINISHED", adapter)
        seconds = time.monotonic() - began
    assert run.waited_seconds <= SERVER_BUDGET_SECONDS + 0.5
    assert seconds <= SERVER_BUDGET_SECONDS + 1.0
    assert (result.run_id, result.unsent) == (None, STEPS)
    assert result.note in {
        f"MLflow at http://***@{address}: {STEPS} lines of metrics were not sent and stay in metrics.jsonl ({reason})"
        for reason in reasons
    }
    assert len((work / "metrics.jsonl").read_text().splitlines()) == STEPS
    for path in work.iterdir():
        assert "secret" not in path.read_text(), path


# Resume


@pytest.mark.usefixtures("patient")
def test_a_resumed_run_goes_on_in_the_same_mlflow_run_and_takes_no_step_twice(
    server: MlflowServer, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    stopped = start(server.url, work)
    stopped.resume(0)
    log_steps(stopped, 1, 7)
    wait_for(work, lambda state: state.sent.get("train/loss") == 7)
    first = stopped.finish("KILLED")
    client = client_of(server.url)
    assert client.get_run(first.run_id).info.status == "KILLED"

    resumed = start(server.url, work, params=PARAMS | {"devices": "cuda:0"})
    resumed.resume(5)
    log_steps(resumed, 6, STEPS)
    wait_for(work, lambda state: state.sent.get("train/loss") == STEPS)
    assert client.get_run(first.run_id).info.status == "RUNNING"
    assert resumed.finish("FINISHED").run_id == first.run_id
    assert loss_steps(client, first.run_id) == list(range(1, STEPS + 1))
    assert client.get_run(first.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("patient")
def test_the_end_of_a_killed_process_is_seen_and_its_run_goes_on(server: MlflowServer, tmp_path: Path) -> None:
    work = tmp_path / "work"
    code = """
import os, signal, sys
from pathlib import Path
from llm_tuning.tracking import Tracker
uri, work = sys.argv[1:]
run = Tracker.start(uri, "experiment", run_name="m", work_dir=Path(work), params={}, tags={})
run.log(1, {"train/loss": 1.0})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, server.url, str(work)], check=False, timeout=60)
    run_id = wait_for(work, lambda state: state.finished).run_id
    client = client_of(server.url)
    assert client.get_run(run_id).info.status == "KILLED"
    assert loss_steps(client, run_id) == [1], "what it had left in the file was sent by its sender"
    again = start(server.url, work)
    again.log(2, {"train/loss": 0.5})
    assert again.run_id == run_id
    assert again.finish("FINISHED").note is None
    assert loss_steps(client, run_id) == [1, 2]


@pytest.mark.usefixtures("patient")
def test_a_run_whose_creation_was_not_seen_is_not_made_twice(server: MlflowServer, tmp_path: Path) -> None:
    work = tmp_path / "work"
    first = start(server.url, work).finish("FAILED")
    assert first.run_id is not None
    (work / "mlflow.json").unlink()  # the sender was killed between the creation and its note of it
    assert start(server.url, work).finish("FINISHED").run_id == first.run_id


@pytest.mark.usefixtures("patient")
def test_a_run_deleted_in_mlflow_is_made_anew_with_all_its_steps(server: MlflowServer, tmp_path: Path) -> None:
    work, client = tmp_path / "work", client_of(server.url)
    run = start(server.url, work)
    log_steps(run, 1, 3)
    first = run.finish("KILLED")
    client.delete_run(first.run_id)
    second = start(server.url, work).finish("FINISHED")
    assert second.run_id not in (None, first.run_id)
    assert loss_steps(client, second.run_id) == [1, 2, 3]
    assert client.get_run(second.run_id).data.params["lora.rank"] == "16"


# Stores on this disk


def test_runs_that_began_together_on_a_new_folder_are_all_there(default_store: DefaultStore) -> None:
    """Making one sqlite store twice at the same time would fail."""
    assert [(result.unsent, result.note) for result in default_store.results] == [(0, None)] * 3
    mlruns = default_store.folder / "mlruns"
    assert {result.uri for result in default_store.results} == {f"sqlite:///{mlruns}/mlflow.db"}
    assert sorted(path.name for path in mlruns.iterdir()) == [".lock", "artifacts", "mlflow.db"]


def test_mlflow_ui_on_the_default_store_shows_its_runs(default_store: DefaultStore, server: MlflowServer) -> None:
    client = client_of(server.url)
    for result, name in zip(default_store.results, TOGETHER, strict=True):
        run = client.get_run(result.run_id)
        assert (run.info.run_name, run.info.status) == (name, "FINISHED")
        assert loss_steps(client, result.run_id) == [1, 2, 3, 4, 5]
        assert {file.path for file in client.list_artifacts(result.run_id)} == {
            "model.json",
            "README.md",
            "loss_curve.png",
        }
    experiment = client.get_experiment_by_name("experiment")
    found = client.search_runs([experiment.experiment_id], "tags.model_id = 'faq v3'")
    assert [run.info.run_id for run in found] == [default_store.results[2].run_id]


def test_a_file_store_that_is_there_is_honoured(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import mlflow; mlflow.set_tracking_uri('./mlruns'); mlflow.create_experiment('old')"],
        env=os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    run = start("./mlruns", tmp_path / "work")
    log_steps(run, 1, 3)
    result = run.finish("FINISHED")
    assert result.note is None
    assert result.uri == f"file://{tmp_path}/mlruns"
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
    [metric_file] = (tmp_path / "mlruns").glob(f"*/{result.run_id}/metrics/train/loss")
    assert len(metric_file.read_text().splitlines()) == 3


def test_a_broken_store_is_told_in_one_sentence_and_fails_nothing(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_text("not a database, but long enough to be read as one" * 10)
    run = start("./mlruns", tmp_path / "work")
    log_steps(run, 1, 3)
    assert run.run_id is None
    result = run.finish("FINISHED")
    assert result.unsent == 3
    assert "file is not a database" in (result.note or "")


# The process that trains


def test_a_run_prints_nothing_of_mlflow_and_keeps_its_environment(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from llm_tuning.tracking import Tracker
before = dict(os.environ)
run = Tracker.start("./mlruns", "e", run_name="m", work_dir=Path("work"), params={}, tags={})
run.log(1, {"train/loss": 1.0})
assert run.run_id is not None
assert run.finish("FINISHED").note is None
assert dict(os.environ) == before
assert not {"mlflow", "sqlalchemy", "torch"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_a_uri_the_metrics_are_in_the_file_only(tmp_path: Path) -> None:
    run = start(None, tmp_path / "work")
    log_steps(run, 1, 2)
    assert run.run_id is None
    assert run.finish("FINISHED") == TrackingResult(None, None, "experiment", unsent=0, note=None)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["metrics.jsonl"]


def test_a_sender_that_cannot_start_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    run = start("http://localhost:1", tmp_path / "work")
    log_steps(run, 1, 2)
    assert run.run_id is None
    result = run.finish("FINISHED")
    assert result.unsent == 2
    assert "the sender cannot be started: No such file or directory" in (result.note or "")
    assert run.waited_seconds < 1
