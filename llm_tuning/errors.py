"""The errors a user can meet, and the exit codes they become.

    TuningError
    +-- InputError (ValueError)    exit 64: bad input, never retried; holds every problem found
    +-- TryAgain (RuntimeError)    exit 75: nothing is wrong with the input; the same command may succeed later

Whether something is retried is decided by the type alone, never by reading a message.

The library does not know who asks: its sentences name a setting by a placeholder, and the edge (command line, pod, API)
puts in the word that its users know (`in_words`):

    {field:training.max_length}     the setting itself               --max_length     spec.training.maxLength
    {set:lora.rank=8}               what to do to give it a value    use --lora_rank 8         set spec.lora.rank to 8
    {command:registry list}         a command, or what stands for it
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

EXIT_OK = 0
EXIT_INPUT = 64
"""Bad input (EX_USAGE in sysexits.h): a Job's podFailurePolicy fails at once on it."""
EXIT_TRY_AGAIN = 75
"""Try again (EX_TEMPFAIL in sysexits.h): stopped after a checkpoint, volume busy or full, GPU missing."""


class Words(Protocol):
    """The names that one edge has for what the library speaks of; paths are those of the API, in snake_case."""

    def field(self, path: str) -> str: ...

    def setting(self, path: str, value: str) -> str: ...

    def command(self, name: str) -> str: ...


class PlainWords:
    """The words of Python callers, logs and files: the setting's own name."""

    def field(self, path: str) -> str:
        """Return `max_length` of `training.max_length`, and `model.path` whole, whose last part says nothing."""
        name = path.rpartition(".")[2]
        return path if name in ("path", "uri") else name

    def setting(self, path: str, value: str) -> str:
        """Return how a setting is given: `set devices to cpu`."""
        return f"set {self.field(path)} to {value}"

    def command(self, name: str) -> str:
        """Return the command as one types it."""
        return f"`tune-llm {name}`"


PLAIN = PlainWords()
_PLACEHOLDER = re.compile(r"\{(field|set|command):([a-z_.]+(?: [a-z_]+)*)(?:=([^{}]*))?\}")


def in_words(text: str, words: Words = PLAIN) -> str:
    """Return `text` with the words of an edge in place of its placeholders."""

    def word(found: re.Match[str]) -> str:
        kind, name, value = found.groups()
        if kind == "field":
            return words.field(name)
        return words.setting(name, value or "") if kind == "set" else words.command(name)

    return _PLACEHOLDER.sub(word, text)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input: where it is, the rule it breaks (with the value), and what would be right.

    `field` is the API field that it comes from (`dataset.path`), where that is known and `where` says something else:
    a file, a row. Rule and fix may hold placeholders; as text they are in plain words.
    """

    where: str
    rule: str
    fix: str = ""
    field: str = ""

    def in_words(self, words: Words = PLAIN) -> Problem:
        """Return this problem in the words of an edge."""
        return replace(self, rule=in_words(self.rule, words), fix=in_words(self.fix, words))

    def __str__(self) -> str:
        said = self.in_words()
        where = said.where.replace("\n", "\\n")  # a name with a line break must not look like two problems
        text = f"{where}: {said.rule}" if where else said.rule
        return f"{text}; {said.fix}" if said.fix else text


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
    """The run stopped for a reason outside the input; starting it again resumes.

    `reason` is one CamelCase word, `message` may hold placeholders.
    """

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(in_words(message))
