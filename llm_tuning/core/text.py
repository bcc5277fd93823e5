"""Text for people: from outside (file names, rows) on its way to a terminal, which would obey it; counts and sizes."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters but tab and newline, and the marks that turn the direction of a text."""


def printable(text: str) -> str:
    """Return `text` with escape sequences shown instead of sent; its lines stay lines."""
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    """Return `text` as `printable` does, on one line: a name with a line break must not look like two."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def counted(count: int, what: str = "row") -> str:
    """Return `1 row`, `1,204 rows`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def shown_bytes(count: int) -> str:
    """Return `9.1 kB`, `12.4 MB`, `1.52 GB`, in powers of ten as disks and hubs say it."""
    if count >= 1e9:
        return f"{count / 1e9:,.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
