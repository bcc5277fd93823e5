"""What tracking and progress cost: a share of step time while they work, and seconds of a run when they cannot.

The step is real work on the training thread (matrix products, about 100 ms). Asserted is the upper bound of the cost:
the time that the training thread spends in the reporter and all processor time of the progress thread and of the
sender, as if none of it ran on another core. Wall-clock times of interleaved runs are printed beside it: on a machine
with other work they differ by more than what is measured.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from llm_tuning.progress import Progress
from llm_tuning.progress.endpoint import StatusEndpoint
from llm_tuning.progress.lines import JsonLines
from llm_tuning.run.context import Reporter
from llm_tuning.run.reporter import RunReporter, SilentReporter
from llm_tuning.tracking import SERVER_BUDGET_SECONDS, MetricsFile, Tracker
from llm_tuning.tracking.outbox import read_state
from tests.support.status_server import closed_port, silent_server

STEPS = 100
ROUNDS = 3
METRICS = {"train/loss": 1.0, "train/learning_rate": 1e-4, "train/grad_norm": 0.5}


@pytest.fixture
def step() -> Iterator[Callable[[], object]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix = torch.randn(700, 700)
    matrix /= matrix.norm(2)

    def work() -> object:
        value = matrix
        for _ in range(_products(matrix)):
            value = value @ matrix
        return value

    yield work
    torch.set_num_threads(threads)


_CALIBRATED: list[int] = []


def _products(matrix: torch.Tensor) -> int:
    """How many products take about 100 ms on this machine; measured once."""
    if not _CALIBRATED:
        for _ in range(20):
            matrix @ matrix
        began = time.perf_counter()
        for _ in range(50):
            matrix @ matrix
        _CALIBRATED.append(max(1, round(0.1 / ((time.perf_counter() - began) / 50))))
    return _CALIBRATED[0]


@dataclass
class Cost:
    """Of one run: wall seconds a step, and the seconds of a step that reporting took at most."""

    wall: float
    reporting: float


def run_steps(step: Callable[[], object], reporter: Reporter, sender: int | None = None) -> Cost:
    """Take the steps; `sender` is the process id of the tracker's sender."""
    reporter.start(STEPS, 0)
    inside = []
    sender_before = processor_seconds(sender)
    others_before = time.process_time() - time.thread_time()
    began = time.perf_counter()
    for number in range(1, STEPS + 1):
        step()
        called = time.perf_counter()
        reporter.step(number, number / STEPS, METRICS, tokens=1000)
        inside.append(time.perf_counter() - called)
    wall = time.perf_counter() - began
    others = time.process_time() - time.thread_time() - others_before
    elsewhere = others + processor_seconds(sender) - sender_before
    # The median call: a call during which another process had the core took no longer for it.
    return Cost(wall / STEPS, statistics.median(inside) + elsewhere / STEPS)


def processor_seconds(process: int | None) -> float:
    """User and system time of a process so far."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tracked(folder: Path, stack: ExitStack, step: Callable[[], object]) -> Cost:
    """Metrics to the default store, whose sender is at work.

    Its start is not counted: five processor seconds beside the imports of the training, once a run.
    """
    tracker = Tracker.start(
        str(folder / "mlruns"), "bench", run_name="bench", work_dir=folder / "work", params={}, tags={}
    )
    stack.callback(lambda: tracker.finish("FINISHED"))
    assert tracker.run_id is not None
    tracker.log(0, METRICS)
    while not read_state(folder / "work").sent:
        time.sleep(0.05)
    assert tracker.sender_pid is not None
    reporter = RunReporter(Progress([JsonLines(io.StringIO())]), tracker)
    stack.callback(reporter.close)
    return run_steps(step, reporter, tracker.sender_pid)


def before_a_silent_endpoint(folder: Path, stack: ExitStack, step: Callable[[], object]) -> Cost:
    address = stack.enter_context(silent_server())
    progress = Progress([JsonLines(io.StringIO()), StatusEndpoint(f"http://{address}")])
    reporter = RunReporter(progress, MetricsFile(folder / "metrics.jsonl"))
    stack.callback(reporter.close)
    return run_steps(step, reporter)


@pytest.mark.parametrize("form", [tracked, before_a_silent_endpoint])
def test_reporting_costs_at_most_a_hundredth_of_a_step(
    tmp_path: Path, step: Callable[[], object], form: Callable[[Path, ExitStack, Callable[[], object]], Cost]
) -> None:
    plain, reported = [], []
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        plain.append(run_steps(step, SilentReporter()))
        with ExitStack() as stack:
            reported.append(form(folder, stack, step))
    share = statistics.median(cost.reporting / cost.wall for cost in reported)
    walls = [statistics.median(cost.wall for cost in costs) * 1000 for costs in (plain, reported)]
    print(f"\n{form.__name__}: at most {share:.2%} of a step; wall {walls[0]:.1f} ms without, {walls[1]:.1f} with")
    assert share <= 0.01


def test_a_call_takes_microseconds(tmp_path: Path) -> None:
    reporter = RunReporter(Progress([JsonLines(io.StringIO())]), MetricsFile(tmp_path / "metrics.jsonl"))
    reporter.start(10_000, 0)
    began = time.perf_counter()
    for number in range(1, 10_001):
        reporter.step(number, 0.5, METRICS, tokens=1000)
    microseconds = (time.perf_counter() - began) * 100
    reporter.close()
    print(f"\nreporter.step: {microseconds:.0f} microseconds")
    assert microseconds < 200


@pytest.mark.parametrize("unwell", ["dead", "silent"])
def test_an_unwell_server_costs_a_run_at_most_five_seconds(tmp_path: Path, unwell: str) -> None:
    with ExitStack() as stack:
        address = closed_port() if unwell == "dead" else stack.enter_context(silent_server())
        waited = 0.0
        began = time.perf_counter()
        tracker = Tracker.start(
            f"http://{address}", "bench", run_name="bench", work_dir=tmp_path / "work", params={}, tags={}
        )
        waited += time.perf_counter() - began
        deadline = time.monotonic() + 10  # a short training: the sender starts beside it
        number = 0
        while time.monotonic() < deadline:
            number += 1
            tracker.log(number, METRICS)
            time.sleep(0.01)
        began = time.perf_counter()
        assert tracker.run_id is None
        result = tracker.finish("FINISHED")
        waited += time.perf_counter() - began
    print(f"\n{unwell} server: {waited:.2f} s of a run; {result.unsent} lines stay in the file")
    assert result.unsent == number
    assert waited <= SERVER_BUDGET_SECONDS + 0.2
