"""The words of a status: every one is set by some code, so that no page explains one that nobody will ever see."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from llm_tuning.api.conditions import AdapterReason, Reason, ServiceReason

ROOT = Path(__file__).resolve().parents[4]
ENUMS: dict[str, type[StrEnum]] = {kind.__name__: kind for kind in (Reason, ServiceReason, AdapterReason)}


def _members(tree: ast.Module) -> Iterator[StrEnum]:
    """Find each `Reason.MEMBER` of a module that imports the enum, also under a name of its own."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "llm_tuning.api.conditions":
            names |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in ENUMS}
    for node in tree.body:  # `R = ServiceReason`
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in names:
            names |= {name.id: names[node.value.id] for name in node.targets if isinstance(name, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            yield ENUMS[names[node.value.id]][node.attr]


@pytest.fixture(scope="module")
def used() -> set[tuple[str, str]]:
    sources = [path for folder in ("operator", "llm_tuning") for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    return {(type(member).__name__, member.name) for tree in trees for member in _members(tree)}


@pytest.mark.parametrize("name", ENUMS)
def test_every_reason_is_used_besides_its_definition(name: str, used: set[tuple[str, str]]) -> None:
    assert [member.name for member in ENUMS[name] if (name, member.name) not in used] == []
