"""The table of docs/families.md, made from docs/families.json, which `python -m docs.tools.families` renews.

`make test-all` tries every family of the zoo (tests/full/families) and leaves what it found in build/families; this
takes it over into docs/families.json. `python -m docs.tools.reference` writes the table.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.tools.tables import table

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "docs/families.json"
FINDINGS = ROOT / "build/families"
LIBRARIES = ("torch", "transformers", "peft")
TITLES = ("Family, class", "Trained layers", "Rows", "Loss, gradient", "Plain PEFT", "PPO after it", "vLLM")


def families_table() -> Iterator[str]:
    """Every family of models that the tests try, and what came of it."""
    yield from table(TITLES, _rows())
    yield _divided()
    yield ""


def _divided() -> str:
    """Say what came of the families that were divided over ranks."""
    families = json.loads(RECORD.read_text(encoding="utf-8"))["families"]
    said = {name: found["sharded"] for name, found in families.items() if not found["refused"] and "sharded" in found}
    equal = sum(of_one == "equal" for of_one in said.values())
    others = "".join(f" {name}: {of_one}." for name, of_one in said.items() if of_one != "equal")
    return (
        f"Of the {len(said)} families that are trained, {equal} were divided over two processes "
        "(`training.sharding: full`)\nand had, to the bit, the loss, the gradients (with gradient checkpointing, too) "
        f"and the generated tokens of the whole base.{others}"
    )


def _rows() -> Iterator[tuple[str, ...]]:
    """One row for each family: those that are trained first."""
    families = json.loads(RECORD.read_text(encoding="utf-8"))["families"]
    for name, found in sorted(families.items(), key=lambda item: (bool(item[1]["refused"]), item[0])):
        named = f"{name}, `{found['class_name']}`" + (f", with `{found['remedy']}`" if found.get("remedy") else "")
        if found["refused"]:
            yield (named, f"refused: {found['refused']}", "", "", "", "", "")
            continue
        yield (
            named,
            ", ".join(f"`{module}`" for module in found["modules"]),
            "flat" if found["padding_free"] else "padded",
            f"{_number(found['loss'])}, {_number(found['gradient'])}",
            _number(found["peft"]),
            f"refused: {found['ppo']}" if found["ppo"] else "yes",
            _served(found),
        )


def _served(found: dict[str, Any]) -> str:
    if found.get("engine"):
        return str(found["engine"])
    loaded = found.get("vllm", {})
    if "error" in loaded:
        return f"not loaded: {loaded['error']}"
    return f"its loader takes all {loaded['given']} layers" if loaded else ""


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


def main() -> int:
    """Take the findings of the last run over into the record."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"families": {}}
    for path in sorted(FINDINGS.glob("*.json")):
        found = json.loads(path.read_text())
        record["families"][path.stem] = record["families"].get(path.stem, {}) | found
    record["versions"] = {name: importlib.metadata.version(name) for name in LIBRARIES}
    record["families"] = dict(sorted(record["families"].items()))
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{RECORD.relative_to(ROOT)}: {len(record['families'])} families\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
