"""docs/reference/templates.md: what the templates of the families can say of tools and reasoning.

Made from docs/templates.json, the record of a trial with rows: `python -m tests.support.template_trial`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from docs.tools.tables import table

RECORD = Path(__file__).resolve().parents[1] / "templates.json"


def templates_page() -> Iterable[str]:
    """Which rows with tools and reasoning each template takes."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    yield from ("# Templates: tools and reasoning", "")
    yield from (
        "Which rows a base learns from depends on what its chat template can say: a row of which the template would",
        "lose a tool, a call, an argument, a result or reasoning is refused, and never flattened. A test holds this",
        "table to the templates, which are those that TRL knows, by TRL's names; yours is checked by its own text.",
        "",
    )
    yield from table(("Family", "Template", *record["chats"].values()), _rows(record))
    yield from (
        "Nobody needs the table to find out: the check says it of your rows where it is given the base. A server shows",
        "a template the arguments of earlier calls as objects: one that takes them as text alone, as DeepSeek V3's",
        "does, fails in the server as it does here.",
        "",
    )


def _rows(record: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    own = {name: tried for name, tried in record["templates"].items() if not name.endswith("_training")}
    for name, tried in sorted(own.items(), key=lambda item: (item[1]["family"].lower(), item[0])):
        can = ("yes" if chat in tried["learned"] else "no" for chat in record["chats"])
        yield (tried["family"], f"`{name}`", *can)
