"""A trainer that trains nothing: it publishes a whole tiny adapter at once, or does what it is told to do instead.

It takes the place of `llm_tuning.pod.train` (see `sitecustomize.py`) and uses the real publishing, registry, progress
and result. What to do stands in the spec, as `tracking.experimentName: "stand-in:WORD[=NUMBER],..."`:

    sleep=S        train for S seconds: a step a second, SIGTERM is obeyed with 75
    exit=64        refuse the input; exit=75: ask to be started again; another number: end without a result
    flaky=N        ask to be started again at the first N starts, then publish
    crash          die at import, as a broken image does
    oom            take memory until the kernel ends it
    ignore-term    train for ten minutes, deaf to SIGTERM
    canary         print the names (never the values) of the environment's variables first
    silent         publish, and end with 0 without leaving a result

Each start, stop and publication is a line in `models/.stand-in/<model_id>.jsonl`, for tests that count them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tensors import write_safetensors

from llm_tuning.core.files import write_json
from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.data.chat import template_hash
from llm_tuning.data.reading import data_hash
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, EXIT_TRY_AGAIN, InputError, Problem, TryAgain
from llm_tuning.models.base import inspect_base, weight_hash
from llm_tuning.models.manifest import BaseRecord, DatasetRecord, Manifest, MlflowRecord, TrainingRecord, utc_now
from llm_tuning.models.publish import publish
from llm_tuning.models.registry import Registry
from llm_tuning.pod.contract import INPUT_VARIABLE, TrainResult
from llm_tuning.pod.job import PodJob
from llm_tuning.pod.outcome import result_of
from llm_tuning.progress.endpoint import StatusEndpoint
from llm_tuning.progress.snapshot import Snapshot

PREFIX = "stand-in:"
STEPS = 10
DEAF_SECONDS = 600.0
RANK = 4


def orders(experiment: str) -> dict[str, float]:
    """`stand-in:sleep=5,canary` as {"sleep": 5.0, "canary": 0.0}."""
    words = experiment.removeprefix(PREFIX).split(",") if experiment.startswith(PREFIX) else []
    return {name: float(number or 0) for name, _, number in (word.partition("=") for word in words)}


def _die_at_import() -> None:
    spec = json.loads(os.environ.get(INPUT_VARIABLE, "{}")).get("spec", {})
    if "crash" in orders(spec.get("tracking", {}).get("experimentName", "")):
        print("ImportError: libstandin.so.1: cannot open shared object file", file=sys.stderr, flush=True)
        os._exit(1)


_die_at_import()


def run(job: PodJob) -> TrainResult:
    """Do as the spec's experiment says, and publish."""
    told = orders(job.input.spec.tracking.experiment_name)
    if "canary" in told:
        print("environment:", " ".join(sorted(os.environ)), file=sys.stderr, flush=True)
    diary = Diary(job.models / ".stand-in" / f"{job.input.model_id}.jsonl")
    starts = diary.write("start")
    if starts <= told.get("flaky", 0):
        raise TryAgain("StandIn", f"told to fail at the first {told['flaky']:g} starts, this is number {starts}")
    if "exit" in told:
        _end(int(told["exit"]))
    if "oom" in told:
        _take_memory()
    registry = Registry(job.models)
    if (nodes := job.nodes()) is not None and nodes.index > 0:
        return _lend(registry, job.input.model_id)
    with _locked(job.models / ".work" / job.input.model_id):
        if registry.find(job.input.model_id) is None:
            try:
                _train(told)
            except TryAgain:
                diary.write("stop")
                raise
            _publish(job)
            diary.write("publish")
    shutil.rmtree(job.models / ".work" / job.input.model_id, ignore_errors=True)
    registry.heal(published=job.input.model_id)
    if "silent" in told:
        os._exit(EXIT_OK)
    return result_of(registry, job.input.model_id)


def _lend(registry: Registry, model_id: str) -> TrainResult:
    """Do what a pod of another index does: nothing, until that of index 0 has published."""
    while registry.find(model_id) is None:
        raise_if_stopped("in a step of the stand-in")
        time.sleep(0.2)
    return TrainResult(ok=True, reason="Trained", message="lent its devices", model_id=model_id)


class Diary:
    """What this model's trainers did, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: str) -> int:
        """Add a line and return how many of this event there are now."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+") as stream:
            stream.write(json.dumps({"event": event, "time": time.time(), "host": os.uname().nodename}) + "\n")
            stream.flush()
            stream.seek(0)
            return sum(json.loads(line)["event"] == event for line in stream)


def _end(code: int) -> None:
    if code == EXIT_INPUT:
        raise InputError(Problem("spec.tracking.experimentName", "the stand-in was told to refuse this"))
    if code == EXIT_TRY_AGAIN:
        raise TryAgain("StandIn", "the stand-in was told to be started again")
    os._exit(code)


def _take_memory() -> None:
    taken = []
    while True:
        taken.append(b"x" * (32 << 20))


def _train(told: dict[str, float]) -> None:
    deaf = "ignore-term" in told
    seconds = told.get("sleep", 0.0) or (DEAF_SECONDS if deaf else 0.0)
    endpoint = StatusEndpoint.from_environment()
    began, step, total = time.monotonic(), 0, max(STEPS, round(seconds))
    while True:
        passed = time.monotonic() - began
        if endpoint is not None:
            step = min(total, 1 + int(passed))
            left = max(0.0, seconds - passed)
            metrics = {"train/loss": 3.0 - 2.0 * step / total}
            now = {"epoch": step / total, "tokens_per_second": 1000.0, "remaining_seconds": left, "metrics": metrics}
            endpoint.show(Snapshot("training", step, total, **now, stepping=True))
        while time.monotonic() - began < min(passed + 1.0, seconds):
            if not deaf:
                raise_if_stopped("in a step of the stand-in")
            time.sleep(0.05)
        if time.monotonic() - began >= seconds:
            return


def _publish(job: PodJob) -> None:
    config, model_id = job.config(), job.input.model_id
    base = inspect_base(config.model.path)
    stage = job.models / ".work" / model_id / "stage"
    stage.mkdir(parents=True, exist_ok=True)
    _write_adapter(stage, base.path)
    loss = {"perplexity": 20.1, "token_accuracy": 0.4, "tokens": 100, "rows": 2}
    manifest = Manifest(
        model_id=model_id,
        model_name=model_id,
        mode=config.mode,
        created_at=utc_now(),
        base=BaseRecord(
            path=config.model.path,
            name=base.name,
            weight_hash=weight_hash(base, job.models / ".cache" / "base_hashes.json"),
        ),
        configuration=config.model_dump(mode="json", by_alias=True, exclude={"tracking"}),
        config_hash="0" * 64,
        dataset=DatasetRecord(path=config.dataset.path, hash=data_hash(Path(config.dataset.path))),
        template_hash=template_hash(base.path),
        metrics={
            "source": "held_out",
            "held_out_rows": 2,
            "base": loss | {"loss": 3.0},
            "start": None,
            "tuned": loss | {"loss": 1.5, "perplexity": 4.5},
        },
        mlflow=MlflowRecord(run_id="5" * 32, uri="stand-in"),
        training=TrainingRecord(steps=STEPS, epochs=1.0, seconds=0.1, tokens=1000, loss=1.5),
        devices=["stand-in"],
        description="made by the stand-in of the tests",
        tags=[config.mode],
    )
    publish(stage, job.models / model_id, manifest)


def _write_adapter(stage: Path, base: Path) -> None:
    hidden = json.loads((base / "config.json").read_text())["hidden_size"]
    write_json(
        stage / "adapter_config.json",
        {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]},
    )
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    write_safetensors(
        stage / "adapter_model.safetensors",
        {
            f"{layer}.lora_A.weight": np.full((RANK, hidden), 0.01, dtype=np.float32),
            f"{layer}.lora_B.weight": np.zeros((hidden, RANK), dtype=np.float32),
        },
    )


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """As a real run: a second one of the same model finds it busy."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgain("Busy", "another stand-in is running this model") from None
        yield
