"""One role of a TuningJob (check, train) as a process of this machine, with the same input and result as in a pod."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.api.tuning_job import Progress
from llm_tuning.core.text import printable
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, EXIT_TRY_AGAIN
from llm_tuning.pod.contract import (
    INPUT_VARIABLE,
    ROOT_VARIABLE,
    TERMINATION_LOG_VARIABLE,
    CheckResult,
    PodInput,
    TrainResult,
    parse_result,
)
from llm_tuning.pod.roles import ROLES
from llm_tuning.progress.lines import read_line

MODULE = "llm_tuning.openai_api.local.child"
LINE_BYTES = 2**20
STOP_SECONDS = 120
"""As a pod's grace period: a trainer writes its checkpoint at the end of a step."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    result: CheckResult | TrainResult | None
    last_line: str
    """Of its log."""

    @property
    def is_done(self) -> bool:
        return self.code == EXIT_OK and self.result is not None and self.result.ok

    @property
    def is_refused(self) -> bool:
        return self.code == EXIT_INPUT

    @property
    def may_go_on(self) -> bool:
        """Nothing is wrong with the input: stopped, busy, or no GPU."""
        return self.code == EXIT_TRY_AGAIN

    @property
    def reason(self) -> str:
        return self.result.reason if self.result is not None else "UnexpectedError"

    @property
    def message(self) -> str:
        if self.result is not None:
            return self.result.message
        return f"the process ended with exit code {self.code}: {self.last_line}"


async def run_role(
    role: str, given: PodInput, *, root: Path, log: Path, on_progress: Callable[[Progress], None]
) -> Ended:
    """Run it to its end. Cancelled, it ends the process first, which writes a checkpoint."""
    left = log.with_suffix(".result")
    left.unlink(missing_ok=True)
    environment = os.environ | {
        INPUT_VARIABLE: given.encode(),
        ROOT_VARIABLE: str(root),
        TERMINATION_LOG_VARIABLE: str(left),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULE, str(os.getpid()), role),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        limit=LINE_BYTES,
        start_new_session=True,  # Ctrl-C is for the server, which then ends this
    )
    assert process.stdout is not None
    following = asyncio.create_task(_follow(process.stdout, log, on_progress))
    try:
        last = await asyncio.shield(following)
        code = await process.wait()
    except asyncio.CancelledError:
        await _stop(process)
        await following
        raise
    text = left.read_text(encoding="utf-8") if left.exists() else None
    if ROLES[role].result is TrainResult:
        return Ended(code, parse_result(text, TrainResult), last)
    return Ended(code, parse_result(text, CheckResult), last)


async def _follow(stream: asyncio.StreamReader, log: Path, on_progress: Callable[[Progress], None]) -> str:
    """Copy the output to the log and read the progress in it; returns the last line that is none."""
    last = ""
    with log.open("ab") as copy:
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than LINE_BYTES: dropped
                continue
            if not line:
                return last
            copy.write(line)
            copy.flush()
            text = line.decode("utf-8", "replace")
            progress = read_line(text)
            if progress is not None:
                on_progress(Progress(**{name: getattr(progress, name) for name in Progress.model_fields}))
            elif text.strip():
                last = printable(text.strip())[:300]


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
