"""Tables for people: drawn by rich on a terminal, plain aligned columns otherwise, so that `grep` and `awk` work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llm_tuning.core.text import printable


def score_titles() -> dict[str, str]:
    """Return the titles, with units, of the held-out scores by their names on disk."""
    from llm_tuning.modes import all_scores

    return {score.name: score.title.lower() + (f" ({score.unit})" if score.unit else "") for score in all_scores()}


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows`; the first column is never cut, for it is what gets copied."""
    if sys.stdout.isatty():
        _print_rich(header, [[printable(cell) for cell in row] for row in rows])
    else:
        print_columns([header, *rows])


def print_columns(rows: Sequence[Sequence[str]], *, indent: str = "") -> None:
    """Print `rows` with two spaces between columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(printable(indent + "  ".join(cells).rstrip()))


def _print_rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, no_wrap=number == 0, overflow="fold", min_width=len(rows[0][0]) if not number else None)
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
