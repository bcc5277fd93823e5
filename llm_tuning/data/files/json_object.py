"""What a file holds that is one JSON object instead of rows: lists under names, the columns of a table, or neither."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llm_tuning.data.faults import shown
from llm_tuning.data.files.json_text import JsonText
from llm_tuning.data.files.stored import StoredFile
from llm_tuning.errors import Problem

MAX_MEMBERS = 1000
"""Members of an object kept; what has more of them is a table by its index."""
NAME_THE_LIST = "name the list: "
_OF_A_MESSAGE = ("role", "content", "from", "value")
_OF_A_ROW = ("tools", "functions")
"""Lists of objects that one row has beside its messages."""
_AS_RECORDS = "with pandas: to_json(path, orient='records', lines=True)"


@dataclass(frozen=True)
class Member:
    """One member of the object: the first characters of its value (`[`, `{`, `"` ...) and of what that holds first."""

    name: str
    kind: str
    first: str = ""
    first_name: str = ""
    """The first name in it, where it is an object or a list of objects."""


@dataclass
class Outline:
    """The object that a file begins with."""

    members: list[Member] = field(default_factory=list)
    first_line: int = 0
    last_line: int = 0
    rest: str = ""
    """The first character behind it, "" at the end of the file."""


def outline_of(file: StoredFile) -> Outline:
    """Read a file that begins with an object, in memory that does not grow with it; raises InputError."""
    outline = Outline()
    with file.open() as stream:
        text = JsonText(file.path, stream)
        text.take("{")
        outline.first_line = text.line
        while text.peek() != "}":
            member = _member(text)
            if len(outline.members) < MAX_MEMBERS:
                outline.members.append(member)
            if text.peek() not in (",", "}"):
                raise text.error("is not valid JSON: expecting , or }", "correct it")
            if text.peek() == ",":
                text.take(",")
        text.take("}")
        outline.last_line = text.line
        outline.rest = text.peek()
    return outline


def _member(text: JsonText) -> Member:
    name = text.key()
    kind = text.peek()
    if kind not in ("[", "{"):
        text.skip()
        return Member(name, kind)
    text.take(kind)
    depth, first, inside = 1, text.peek(), ""
    if kind == "[" and first == "{":
        text.take(first)
        depth = 2
    if text.peek() == '"' and (kind == "{" or depth == 2):
        inside = text.key()
    text.skip(depth)
    return Member(name, kind, first, inside)


def lists_of(outline: Outline) -> list[str]:
    """Return the names under which a file holds lists of rows; the messages and tools of one row are none."""
    return [
        member.name
        for member in outline.members
        if member.kind == "[" and member.first == "{"
        if member.first_name not in _OF_A_MESSAGE and member.name not in _OF_A_ROW
    ]


def object_problem(path: Path, outline: Outline) -> Problem:
    """Build the problem of a file that is one JSON object instead of rows."""
    if lists := lists_of(outline):
        exact = " or ".join(f"{path}#{shown(name)}" for name in lists)
        return Problem(str(path), "is one JSON object that holds lists of rows", f"{NAME_THE_LIST}{exact}")
    if holds_columns(outline):
        return Problem(str(path), "holds columns, not rows", f"save it by rows, {_AS_RECORDS}")
    fix = "write a JSON array of rows [...] or one row a line"
    return Problem(str(path), "is one JSON object, not a list of rows", fix)


def holds_rows(outline: Outline) -> bool:
    """Return whether the object holds rows under names, or a table by its columns."""
    return bool(lists_of(outline)) or holds_columns(outline)


def holds_columns(outline: Outline) -> bool:
    """Return whether this is a table as pandas writes it by default, or by columns, split or index."""
    members = outline.members
    if {"columns", "index", "data"} == {member.name for member in members}:
        return True
    by_index = all(member.name.isdigit() and member.kind == "{" for member in members)
    lists = all(member.kind == "[" and member.first not in ("{", "[", "]") for member in members)
    objects = all(member.kind == "{" and member.first_name.isdigit() for member in members)
    return bool(members) and (by_index or objects or lists)
