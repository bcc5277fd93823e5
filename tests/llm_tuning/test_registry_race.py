"""Twenty processes publish and register at once, a third of them is killed: nothing published is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import registry_race

ROUNDS, WRITERS = 6, 20


@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_writers_with_a_third_killed_lose_nothing_published(tmp_path: Path, seed: int) -> None:
    script = [sys.executable, registry_race.__file__, str(tmp_path / "models"), str(seed), str(ROUNDS), str(WRITERS)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        script, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(result)
    assert result["faults"] == []
    # The kills must have hit: some in the middle, and most of the third.
    assert sum(result["killed"].values()) >= ROUNDS * WRITERS // 6, result
    assert result["killed"].get("published", 0) >= 1, result
    assert result["published"] >= ROUNDS * WRITERS // 2
