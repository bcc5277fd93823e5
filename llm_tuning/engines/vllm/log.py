"""The errors that vLLM's log names: the reason stands far above the last traceback's end."""

from __future__ import annotations

import itertools
import re

_ERROR = re.compile(r"\b\w*(Error|Exception)\b(: |$)")
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^]]*\] )?")
"""What vLLM's processes put before each line."""
FOLLOWS = "root cause|[Cc]heck the logs|raised in subprocess|EngineDeadError"
"""In errors that only say that another one happened: a pattern that means the same for text and for bytes."""
_REMEDIES = {
    "No module named 'torchvision'": "this vLLM has no torchvision, which it needs for every base that also sees or "
    "hears, also for text alone: `make vllm-env` again, or install the one that matches its torch",
    r"Free memory on device .* less than": "another process holds the card (time slicing, MPS, a pod that is ending): "
    "lower spec.vllm.gpuMemoryUtilization, the share of the whole card that vLLM asks for, or wait",
    r"-parser \S+ cannot be used with the tokenizer": "it looks for tokens that this base lacks: set spec.vllm."
    "toolCallParser or reasoningParser (launch_llm.sh: TOOL_CALL_PARSER, REASONING_PARSER) to none or another",
}
"""What to do about an error, in the words of the spec, by a pattern of it."""
_NOISE = re.compile(r'\s+(File "|For further information visit)')


def last_error(log: str, *, most: int) -> str:
    """Return the last error with the indented lines that continue it (as pydantic's do), else the last, in one line.

    An error that says that another is the root cause counts only where there is no other.
    """
    lines = [_PREFIX.sub("", line) for line in log.splitlines()]
    lines = [line for line in lines if line.strip()]
    errors = [number for number, line in enumerate(lines) if _ERROR.search(line)]
    causes = [number for number in errors if not re.search(FOLLOWS, " ".join([lines[number], *_rest(lines, number)]))]
    first = (causes or errors or [len(lines) - 1])[-1]
    return " ".join(" ".join([*lines[first : first + 1], *_rest(lines, first)]).split())[:most]


def _rest(lines: list[str], first: int) -> list[str]:
    """Return the lines that continue an error."""
    following = lines[first + 1 :]
    return list(itertools.takewhile(lambda line: line.startswith("  ") and not _NOISE.match(line), following))


def remedy(error: str) -> str:
    """Return what to do about an error; empty where only vLLM's own words are known."""
    return next((fix for pattern, fix in _REMEDIES.items() if re.search(pattern, error)), "")


def log_end(log: str, *, lines: int) -> list[str]:
    """Return the lines above the last ones that name an error, then the last `lines` ones."""
    written = [line for line in log.splitlines() if line.strip()]
    end = written[-lines:]
    errors = [line for line in written[: -len(end)] if _ERROR.search(line)]
    return [*dict.fromkeys(errors[-4:]), *end]
