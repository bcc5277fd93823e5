"""Markdown tables of the generated pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


def table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table and a blank line."""
    yield "| " + " | ".join(titles) + " |"
    yield "|" + " --- |" * len(titles)
    for row in rows:
        yield "| " + " | ".join(" ".join(_literal(cell).split()) for cell in row) + " |"
    yield ""


def _literal(text: str) -> str:
    """`|` ends a cell and `<word>` is taken for HTML, code between backticks apart."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "\\<") for part in parts)
