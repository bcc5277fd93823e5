"""Rows in a JSON array: the file itself, or the list that one member of its object holds (`file.json#train`)."""

from __future__ import annotations

from collections.abc import Iterator

from llm_tuning.data.faults import RowFault, shown
from llm_tuning.data.files.json_object import lists_of, outline_of
from llm_tuning.data.files.json_text import JsonText
from llm_tuning.data.files.rows import COPY_AGAIN, Row, not_an_object
from llm_tuning.data.files.stored import StoredFile
from llm_tuning.errors import InputError, Problem


def read_json_array(file: StoredFile) -> Iterator[Row]:
    """Yield (1-based index, value) of each element of a file that is one array. Raises InputError."""
    with file.open() as stream:
        text = JsonText(file.path, stream)
        yield from _rows(text)
        if text.peek() == "[":
            raise text.error(
                "is a JSON array on each line, not one of rows",
                'write {"messages": [...]}, or another row, on each line',
            )
        if text.peek() != "":
            fix = "keep one JSON array, or one row a line"
            raise text.error("holds more text after the end of the array", fix)


def read_json_member(file: StoredFile, name: str) -> Iterator[Row]:
    """Yield (1-based index, value) of each element of the list `name` of a file that is one object.

    The other members are passed over, in memory that does not grow with them. Raises InputError.
    """
    found = False
    with file.open() as stream:
        text = JsonText(file.path, stream)
        text.take("{")
        while text.peek() != "}":
            key = text.key()
            if key == name and found:
                raise text.error(f"gives `{shown(name)}` twice", "keep one of them")
            if key == name and text.peek() != "[":
                raise _no_list(file, f"holds no list in `{shown(name)}`", "")
            if key == name:
                found = True
                yield from _rows(text)
            else:
                text.skip()
            if text.peek() == "}":
                break
            if text.peek() != ",":
                raise text.error("is not valid JSON: expecting , or }", "correct it")
            text.take(",")
        text.take("}")
        if text.peek() != "":
            fix = f"JSON Lines has no lists to name: leave #{shown(name)} away"
            raise text.error("holds more text after the end of the object", fix)
    if not found:
        raise _no_list(file, f"has no `{shown(name)}`", "")


def _no_list(file: StoredFile, rule: str, otherwise: str) -> InputError:
    lists = lists_of(outline_of(file))
    said = " and ".join(f"{file.path}#{shown(key)}" for key in lists)
    fix = f"name a list that it has: {said}" if lists else otherwise or "it has no list of rows"
    return InputError(Problem(str(file.path), rule, fix))


def _rows(text: JsonText) -> Iterator[Row]:
    """Yield the elements of the array at the position and go past it."""
    text.take("[")
    index = 0
    if text.peek() != "]":
        while True:
            index += 1
            value = text.value(index)
            yield index, value if isinstance(value, dict | RowFault) else not_an_object(value)
            if text.peek() != ",":
                break
            text.take(",")
            if text.peek() == "]":
                raise text.error("has a comma after the last row", "remove it")
    if text.peek() == "":
        raise text.error(f"ends after row {index} without the closing ]: the file is cut off", COPY_AGAIN)
    if text.peek() != "]":
        raise text.error(f"is not valid JSON after row {index}: expecting , or ]", "correct it")
    text.take("]")
