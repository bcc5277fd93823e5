"""The errors that vLLM's log names: the reason stands far above the last traceback's end."""

from __future__ import annotations

import itertools
import re

_ERROR = re.compile(r"\b\w*(Error|Exception)\b: ")
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^]]*\] )?")
"""What vLLM's processes put before each line."""
_NOISE = re.compile(r'\s+(File "|For further information visit)')


def last_error(log: str, *, most: int) -> str:
    """Return the last error with the indented lines that continue it (as pydantic's do), else the last, in one line."""
    lines = [_PREFIX.sub("", line) for line in log.splitlines()]
    lines = [line for line in lines if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    first = errors[-1] if errors else len(lines) - 1
    rest = itertools.takewhile(lambda line: line.startswith("  ") and not _NOISE.match(line), lines[first + 1 :])
    return " ".join(" ".join([*lines[first : first + 1], *rest]).split())[:most]


def log_end(log: str, *, lines: int) -> list[str]:
    """Return the lines above the last ones that name an error, then the last `lines` ones."""
    written = [line for line in log.splitlines() if line.strip()]
    end = written[-lines:]
    errors = [line for line in written[: -len(end)] if _ERROR.search(line)]
    return [*dict.fromkeys(errors[-4:]), *end]
