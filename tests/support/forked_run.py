"""Real runs of the command in forked children, and signals sent to them at exact moments.

The parent has the training libraries loaded, so that a run costs its work and not ten seconds of imports. A moment is
a call: the function is wrapped, and its n-th call first sends the signal to the process itself, as a real signal.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Moment:
    """The `call`-th call (from 1) of `target` ("module:attribute.path"); `after` means after it returned."""

    target: str
    call: int = 1
    after: bool = False


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code (negative: the signal), and what it printed on both streams."""

    code: int
    output: str


def forked_run(arguments: Sequence[object], *, at: Moment | None = None, send: int = signal.SIGTERM) -> Ended:
    """Run the command line in a forked child, in the current folder, and wait for its end (at most two minutes)."""
    log = Path(f"output-{time.monotonic_ns()}.txt")
    child = os.fork()
    if child == 0:
        _child([str(argument) for argument in arguments], log, at, send)
    deadline = time.monotonic() + 120
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return Ended(os.waitstatus_to_exitcode(status), log.read_text())
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"the run did not end:\n{log.read_text()}")
        time.sleep(0.02)


def _child(arguments: list[str], log: Path, at: Moment | None, send: int) -> None:
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        from llm_tuning.codes import tune_llm

        tune_llm.CLI_DEFAULTS["tracking_uri"] = None  # no MLflow: another process a run, and tested by itself
        if at is not None:
            _trip(at, send)
        code = tune_llm.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _trip(moment: Moment, send: int) -> None:
    module_name, _, path = moment.target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *inner, name = path.split(".")
    for part in inner:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def tripped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != moment.call:
            return original(*args, **kwargs)
        if not moment.after:
            os.kill(os.getpid(), send)
        result = original(*args, **kwargs)
        if moment.after:
            os.kill(os.getpid(), send)
        return result

    setattr(owner, name, tripped)
