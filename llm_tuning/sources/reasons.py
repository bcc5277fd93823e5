"""Why a source is not there, one word each, and whether trying again can help: the type of the error decides."""

from __future__ import annotations

from enum import StrEnum

from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.sources.uri import Source


class Terminal(StrEnum):
    """Reasons that a retry does not change; each is an InputError (exit 64)."""

    NOT_FOUND = "SourceNotFound"
    REVISION = "RevisionNotFound"
    ACCESS = "AccessDenied"
    FORMAT = "UnsafeFormat"
    HASH = "HashMismatch"
    ROOM = "VolumeTooSmall"


class Passing(StrEnum):
    """Reasons that pass; each is a TryAgain (exit 75)."""

    RATE = "RateLimited"
    UNREACHABLE = "SourceUnreachable"
    STALLED = "SourceStalled"


class SourceRefused(InputError):  # noqa: N818 - as TryAgain
    """A source that cannot be had as it is given; `reason` is one word, the problem says what to do."""

    def __init__(self, reason: Terminal, source: Source, rule: str, fix: str) -> None:
        self.reason = reason
        super().__init__(Problem(source.where, rule, fix, field=source.kind.field))


class SourceBusy(TryAgain):
    """A source that cannot be had now. `wait_seconds` is what the server asked for, None where it asked for nothing."""

    def __init__(self, reason: Passing, source: Source, rule: str, *, wait_seconds: float | None = None) -> None:
        self.wait_seconds = wait_seconds
        self.passing = reason
        super().__init__(reason, f"{source.where}: {rule}; what is there already is kept, and the next try goes on")
