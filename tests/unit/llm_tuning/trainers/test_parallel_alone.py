"""torch.distributed has one place: what has to change for other launchers, or for sharding, is in that file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[4]
ALONE = Path("llm_tuning/trainers/parallel.py")


def imported(path: Path) -> Iterator[str]:
    """Every module that the file names in an import or as `torch.something`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"


def test_parallel_alone_knows_torch_distributed() -> None:
    files = [*(ROOT / "llm_tuning").rglob("*.py"), *(ROOT / "operator").rglob("*.py")]
    users = {
        file.relative_to(ROOT)
        for file in files
        if any(name.startswith(("torch.distributed", "torch.multiprocessing")) for name in imported(file))
    }
    assert users == {ALONE}
