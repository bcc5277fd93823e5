"""What may stand in a test's id: the workers of a run must collect the same ids, and people select and read them."""

from __future__ import annotations

import re

ID_CHARACTERS = 160
VALUE_CHARACTERS = 40
_DOUBLED = re.compile(r"\\\\")  # pytest writes a backslash of a value as two, and an escape with one


def id_of(value: object, argument: str) -> str | None:
    """Return `argument` for text or bytes that are long or do not print; None leaves the id to pytest.

    Bytes of a compressed file hold the time at which they were made: as an id they differ between two workers.
    """
    if isinstance(value, bytes):  # pytest does not double their backslashes
        return argument if not value.isascii() or b"\\" in value else id_of(value.decode(), argument)
    if isinstance(value, str) and not (value.isascii() and value.isprintable() and len(value) <= VALUE_CHARACTERS):
        return argument
    return None


def broken_id_rule(test_id: str) -> str | None:
    """Return the rule that an id breaks, with what to do."""
    if len(test_id) > ID_CHARACTERS:
        return (
            f"has {len(test_id)} characters: an id has at most {ID_CHARACTERS}; give a short one as pytest.param(id=)"
        )
    if "\\" in _DOUBLED.sub("", test_id) or not test_id.isprintable():
        return "holds characters that do not print: give one in plain words as pytest.param(id=)"
    return None
