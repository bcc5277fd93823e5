"""What the demo's world consists of: one-sentence facts about Python, read from the docstrings of this very Python.

Every Python ships them, so the demo needs no download; and whoever reads an answer can check it with `help(...)`.
"""

from __future__ import annotations

import builtins
import datetime
import importlib
import inspect
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

TYPES = (str, list, dict, set, int, float, pathlib.Path, datetime.date, datetime.datetime)
MODULES = (
    *("calendar", "copy", "fnmatch", "functools", "glob", "heapq", "html", "json", "math", "operator"),
    *("os.path", "random", "re", "secrets", "shlex", "shutil", "statistics", "textwrap", "time"),
    "urllib.parse",
)
VERBS = frozenset(
    re.findall(
        r"\w+",
        """
        Add Append Arrange Build Call Change Choose Clean Clear Close Collapse Combine Compare Compile Compute
        Concatenate Convert Copy Count Create Decode Delete Determine Divide Duplicate Encode Escape Evaluate
        Execute Expand Extend Extract Fill Find Format Generate Get Group Import Insert Join List Make Map Merge
        Move Normalize Open Pad Parse Partition Pop Print Push Raise Read Register Remove Rename Repeat Replace
        Report Return Reverse Rotate Round Run Set Shuffle Skip Sort Split Start Strip Test Transform Translate
        Truncate Update Wait Walk Wrap Write
        """,
    )
)
"""Docstrings that start with one of these say what a name does; others ("Gaussian distribution.") are left out."""

SENTENCE_CHARACTERS = range(20, 90)
"""Shorter ones say little, longer ones are much to remember for a model of this size."""

QUESTIONS = ("What does `{name}` do?", "What is `{name}` for?", "Explain `{name}`.", "Tell me what `{name}` does.")
"""Ways to ask what a name does: the base model learns them all, the data sets use them all."""


@dataclass(frozen=True)
class Fact:
    """`name` as code writes it, `kind` as in "a method of str", `sentence` its docstring's first: "Return ..."."""

    name: str
    kind: str
    sentence: str

    @property
    def does(self) -> str:
        """The sentence in the third person, without the full stop: `returns the square root of x`."""
        verb, rest = self.sentence.rstrip(".").split(" ", 1)
        verb = verb.lower()
        rest = re.sub(r"\band (return|compute|add|truncate)\b", r"and \1s", rest)
        if verb.endswith("y"):
            return f"{verb[:-1]}ies {rest}"
        return f"{verb}es {rest}" if verb.endswith(("h", "s")) else f"{verb}s {rest}"


def read_facts() -> list[Fact]:
    """Every fact by name, each sentence once: two names with one sentence would be one answer to two questions."""
    facts: dict[str, Fact] = {}
    for name, kind, doc in _documented():
        sentence = first_sentence(doc or "")
        if sentence is not None:
            facts.setdefault(sentence, Fact(name, kind, sentence))
    return sorted(facts.values(), key=lambda fact: fact.name)


def first_sentence(doc: str) -> str | None:
    """The first sentence of prose, as `Return ...`, or None where it is not plain, not short or not about doing."""
    for paragraph in re.split(r"\n\s*\n", doc):
        text = " ".join(paragraph.split())
        match = re.match(r"([A-Z][a-z]+?)(s?) ((?:[^.]|\.(?! |$))*)(?:\.|$)", text)
        if match is None:  # a signature line: the prose comes after it
            continue
        verb, rest = match.group(1), match.group(3)
        if verb not in VERBS and verb + match.group(2) not in VERBS:
            return None
        sentence = f"{verb} {rest}."
        plain = sentence.isascii() and not re.search(r"->|[`*_{}=]|::|e\.g|a\.k\.a|etc\b|deprecated", sentence)
        return sentence if plain and len(sentence) in SENTENCE_CHARACTERS else None
    return None


def _documented() -> Iterator[tuple[str, str, str | None]]:
    for name, value in _public(builtins):
        if inspect.isroutine(value):
            yield name, "a built-in function", value.__doc__
    for type_ in TYPES:
        for name, value in _public(type_):
            if inspect.isroutine(value):
                yield f"{_qualified(type_)}.{name}", f"a method of {_qualified(type_)}", value.__doc__
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in _public(module):
            if inspect.isroutine(value) and not _is_imported(value, module_name):
                yield f"{module_name}.{name}", f"a function of the module {module_name}", value.__doc__


def _qualified(type_: type) -> str:
    return type_.__name__ if type_.__module__ == "builtins" else f"{type_.__module__}.{type_.__name__}"


def _public(namespace: object) -> list[tuple[str, object]]:
    return sorted((name, value) for name, value in vars(namespace).items() if not name.startswith("_"))


def _is_imported(value: object, module_name: str) -> bool:
    home = (getattr(value, "__module__", None) or module_name).lstrip("_")
    return home not in {module_name, "posix", "nt", "posixpath", "ntpath", "genericpath"}
