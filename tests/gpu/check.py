"""`make gpu-check`: runs the checks on one device, each within a time limit, and says what was expected and seen.

    python -m tests.gpu.check --device cuda --out build/gpu-check --budget 540

Torch-free: the checks run in a process of their own (`tests.gpu.worker`), which is ended where one takes too long and
started again where one ended it, so that a fault loses one check and no other. README.md beside this file says what a
machine must have.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from tests.gpu.checks import CHECKS, Check
from tests.gpu.findings import FAILED, NOT_HERE, PASSED, RESULTS, Finding

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
"""Within which the worker must have begun: Python alone."""
LEAST_SECONDS = 10.0
"""A check is not begun with less time than this, nor than its own limit."""
HELP = (
    "what a machine needs is in tests/gpu/README.md, and --device cpu (make gpu-check DEVICE=cpu) rehearses the checks "
    "without a GPU"
)
TRIAL = """
import sys
try:
    import torch
    torch.ones(1, device=sys.argv[1])
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}".split(chr(10))[0])
"""
"""A program that ends with 1 and the reason, on one line, where torch cannot compute on the device it is given."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # as runs and pods have it
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}


@dataclass(frozen=True)
class Line:
    """A finding with its check, and the seconds since the finding before it."""

    check: str
    finding: Finding
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {"check": self.check, **asdict(self.finding), "seconds": round(self.seconds, 2)}


class Worker:
    """The process of the checks."""

    def __init__(self, device: str, out: Path) -> None:
        """Start it; raises TimeoutError where it is not ready in time, RuntimeError where it ended."""
        self.log = (out / "log.txt").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.worker", device, str(out / "scratch")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            cwd=ROOT,
            env=_environment(device),
            start_new_session=True,
        )
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        self._next(time.monotonic() + START_SECONDS)  # "ready"

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _next(self, until: float) -> dict[str, Any]:
        try:
            message = self._messages.get(timeout=max(0.01, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if message is None:
            raise RuntimeError(f"the process ended with {self.process.wait()}; see log.txt")
        return message

    def run(self, check: Check, seconds: float) -> Iterator[Finding]:
        """Run a check and yield what it finds; raises TimeoutError at its limit, RuntimeError where it raised."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"where": check.where, "seconds": seconds}) + "\n")
        self.process.stdin.flush()
        until = time.monotonic() + seconds
        while "ended" not in (message := self._next(until)):
            if "raised" in message:
                raise RuntimeError(message["raised"])
            yield Finding(**message["finding"])

    def stop(self, patience: float = 0.0) -> None:
        """End the process after `patience` seconds, and whatever it started."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def why_unusable(device: str) -> str | None:
    """Return why torch cannot compute on `device`, None where it can."""
    command = [sys.executable, "-c", TRIAL, device]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env=_environment(device), timeout=START_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {START_SECONDS:.0f} s"
    return None if done.returncode == 0 else done.stderr.strip().split("\n")[-1]


def _environment(device: str) -> dict[str, str]:
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}  # threads that wait for each other on busy cores
    path = os.pathsep.join([str(ROOT), str(ROOT / "operator"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return ENVIRONMENT | threads | dict(os.environ) | {"PYTHONPATH": path}


def run_checks(checks: Sequence[Check], device: str, out: Path, budget: float) -> Iterator[Line]:
    """Run the checks in order within `budget` seconds and yield what they find, as it is found."""
    ends = time.monotonic() + budget
    worker: Worker | None = None
    for check in checks:
        before = time.monotonic()
        limit = check.limit(device)
        if ends - before < min(limit, LEAST_SECONDS):
            why = f"not run: {max(0.0, ends - before):.0f} of {budget:.0f} seconds were left"
            yield Line(check.name, Finding("time", "-", why, NOT_HERE if check.optional else FAILED), 0.0)
            continue
        found = 0
        try:
            worker = worker or Worker(device, out)
            limit = min(limit, ends - time.monotonic())
            for finding in worker.run(check, limit):
                found += 1
                yield Line(check.name, finding, time.monotonic() - before)
                before = time.monotonic()
        except (TimeoutError, RuntimeError, BrokenPipeError) as error:
            seen = f"stopped after {limit:.0f} s" if isinstance(error, TimeoutError) else str(error)
            result = NOT_HERE if check.optional else FAILED
            line = Finding(f"after {found} findings", "to its end", seen, result)
            yield Line(check.name, line, time.monotonic() - before)
            if worker is not None:
                worker.stop()
                worker = None
    if worker is not None:
        worker.stop(patience=10.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print the table; returns 0 where some passed and none failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda (its first GPU), cuda:N or cpu, the rehearsal")
    parser.add_argument(
        "--out", type=Path, default=Path("build/gpu-check"), help="folder of findings.jsonl and log.txt"
    )
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for all checks")
    parser.add_argument("--only", nargs="*", metavar="CHECK", help=", ".join(check.name for check in CHECKS))
    options = parser.parse_args(arguments)
    unknown = set(options.only or ()) - {check.name for check in CHECKS}
    if unknown:
        parser.error(f"--only names no check: {', '.join(sorted(unknown))}")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", options.device):
        parser.error(f"--device: must be cuda, cuda:N or cpu, got {options.device!r}")
    device = "cuda:0" if options.device == "cuda" else options.device
    begun, lines = time.monotonic(), []
    if reason := why_unusable(device):
        print(f"error: torch cannot compute on {device}: {reason} ({sys.executable}); {HELP}", file=sys.stderr)
        return 1
    shutil.rmtree(options.out, ignore_errors=True)
    (options.out / "scratch").mkdir(parents=True)
    chosen = [check for check in CHECKS if not options.only or check.name in options.only]
    with (options.out / "findings.jsonl").open("w", buffering=1) as file:
        for line in run_checks(chosen, device, options.out.resolve(), options.budget - (time.monotonic() - begun)):
            lines.append(line)
            file.write(json.dumps(line.as_json()) + "\n")
            print(_row(line), flush=True)
    shutil.rmtree(options.out / "scratch", ignore_errors=True)
    text = table(lines, time.monotonic() - begun)
    (options.out / "table.md").write_text(text)
    print("\n" + text)
    return exit_code(lines)


def exit_code(lines: Sequence[Line]) -> int:
    results = {line.finding.result for line in lines}
    return 0 if PASSED in results and FAILED not in results else 1


def _row(line: Line) -> str:
    finding = line.finding
    return (
        f"{finding.result:8s} {line.seconds:6.1f} s  {line.check}: {finding.name}: {finding.seen} ({finding.expected})"
    )


def table(lines: Sequence[Line], seconds: float) -> str:
    """Write the findings as a Markdown table, then what this machine could not tell, and the count of each result."""
    rows = ["| check | what | expected | seen | result | s |", "| --- | --- | --- | --- | --- | --- |"]
    for line in lines:
        finding = line.finding
        if finding.result != NOT_HERE:
            cells = (line.check, finding.name, finding.expected, finding.seen, finding.result, f"{line.seconds:.1f}")
            rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    absent = [line for line in lines if line.finding.result == NOT_HERE]
    if absent:
        rows += ["", "Not here, and so neither passed nor failed:", ""]
        rows += [f"- {line.check}, {line.finding.name}: {line.finding.seen}" for line in absent]
    counts = {result: sum(line.finding.result == result for line in lines) for result in RESULTS}
    counted = ", ".join(f"{count} {result}" for result, count in counts.items())
    return "\n".join([*rows, "", f"{counted}; {seconds:.0f} s", ""])


if __name__ == "__main__":
    sys.exit(main())
