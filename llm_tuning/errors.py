"""The errors a user can meet, and the exit codes they become.

    TuningError
    +-- InputError (ValueError)    exit 64: bad input, never retried; holds every problem found
    +-- TryAgain (RuntimeError)    exit 75: nothing is wrong with the input; the same command may succeed later

Whether something is retried is decided by the type alone, never by reading a message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EXIT_OK = 0
EXIT_INPUT = 64
"""Bad input (EX_USAGE in sysexits.h): a Job's podFailurePolicy fails at once on it."""
EXIT_TRY_AGAIN = 75
"""Try again (EX_TEMPFAIL in sysexits.h): stopped after a checkpoint, volume busy, GPU missing."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input: where it is, the rule it breaks (with the value), and what would be right.

    `field` is the API field that it comes from (`dataset.path`), where that is known and `where` says something else:
    a file, a row.
    """

    where: str
    rule: str
    fix: str = ""
    field: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.rule}" if self.where else self.rule
        return f"{text}; {self.fix}" if self.fix else text


class TuningError(Exception):
    """Every error this project raises on purpose."""


class InputError(TuningError, ValueError):
    """The input is wrong; `problems` holds all that was found, not only the first."""

    def __init__(self, problems: Problem | str | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class TryAgain(TuningError, RuntimeError):  # noqa: N818 - it is not a fault of the input
    """The run stopped for a reason outside the input; starting it again resumes. `reason` is one CamelCase word."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)
