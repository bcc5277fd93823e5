"""A TrainRun as a worker makes it, with a reporter that keeps what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_tuning.api import TuningConfig
from llm_tuning.core import stopping
from llm_tuning.run.context import TrainRun
from llm_tuning.run.spec import RunSpec


class KeepingReporter:
    """Reporter that keeps everything, for the test to look at."""

    def __init__(self) -> None:
        self.started: tuple[int, int] | None = None
        self.steps: dict[int, dict[str, float]] = {}
        self.tokens = 0
        self.evaluations: dict[int, dict[str, float]] = {}
        self.stages: list[str] = []
        self.slow: list[str | None] = []

    def start(self, total_steps: int, start_step: int) -> None:
        self.started = (total_steps, start_step)

    def step(self, step: int, epoch: float, metrics: dict[str, float], tokens: int) -> None:
        self.steps[step] = metrics | {"epoch": epoch}
        self.tokens += tokens

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.evaluations[step] = metrics

    def slow_rank(self, message: str | None) -> None:
        self.slow.append(message)

    def stage(self, name: str) -> None:
        self.stages.append(name)

    @property
    def losses(self) -> list[float]:
        return [self.steps[step]["train/loss"] for step in sorted(self.steps)]


class StopsAt(KeepingReporter):
    """Asks the process to stop once a step is reported, as SIGTERM in that step would."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def step(self, step: int, epoch: float, metrics: dict[str, float], tokens: int) -> None:
        super().step(step, epoch, metrics, tokens)
        if step == self._at:
            stopping._requested.set()


class SpecOfTest(RunSpec):
    """A spec whose folders are where the test says."""

    in_folder: Path
    with_cache: Path

    @property
    def work(self) -> Path:
        return self.in_folder

    @property
    def cache(self) -> Path:
        return self.with_cache


def make_run(
    work: Path,
    base: Path,
    *,
    mode: str = "sft",
    training: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    ppo: dict[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    quantization: str = "none",
    reporter: Any = None,
    **options: Any,
) -> TrainRun:
    """A run in `work` (whose `rows` folder must be there); `settings` are those of the mode.

    `options` replace fields of TrainRun and of its spec.
    """
    config = TuningConfig.parse(
        {
            "mode": mode,
            "model": {"path": str(base), "quantization": quantization},
            "dataset": {"path": "rows.jsonl"},
            "training": {"precision": "fp32"} | (training or {}),  # not what this machine is fast in
            "lora": lora or {},
            **({"ppo": ppo} if ppo else {}),
            **({mode: settings} if settings else {}),
        }
    )
    place = {"device": "cpu", "rank": 0, "world": 1, "reporter": reporter or KeepingReporter(), "division": None}
    spec = {
        "model_id": "test-run",
        "config": config,
        "config_hash": "c" * 64,
        "devices": [options.get("device", "cpu")] * options.get("world", 1),
        "output_dir": work.parent,
        "base_name": base.name,
        "base_weight_hash": "b" * 64,
        "template_hash": "t" * 64,
        "data_hash": "d" * 64,
        "start_adapter": None,
        "start_adapter_hash": None,
        "created": 0,
        "in_folder": work,
        "with_cache": work.parent / "cache",
    }
    options = {{"work": "in_folder", "cache": "with_cache"}.get(name, name): value for name, value in options.items()}
    place |= {name: options.pop(name) for name in place if name in options}
    return TrainRun(SpecOfTest(**(spec | options)), **place)
