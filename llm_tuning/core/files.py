"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any


def temporary_beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else uses, to write to and then rename.

    The process id would not do: in containers that share a volume every process is number 1.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path` in one step: a temporary sibling, flushed to disk, then renamed.

    Folders that are missing on the way are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with temporary.open("x", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1, ensure_ascii=False, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """The JSON value in `path`, or None where there is no such file; raises ValueError on half or foreign content."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
