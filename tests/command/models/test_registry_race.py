"""Twenty processes publish and register at once, a third of them is killed: nothing published is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import registry_race

WRITERS = 20


def race(models: Path, *, seed: int, rounds: int, kills: int) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[3]
    arguments = [str(models), *map(str, (seed, rounds, WRITERS, kills))]
    done = subprocess.run(
        [sys.executable, registry_race.__file__, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    print(result)
    return result


@pytest.mark.parametrize("seed", [1, 2])
def test_twenty_writers_with_a_third_killed_lose_nothing_published(tmp_path: Path, seed: int) -> None:
    result = race(tmp_path / "models", seed=seed, rounds=4, kills=7)
    assert result["faults"] == []
    # The kills must have hit: most of them, and in each round one between publishing and registering.
    assert sum(result["killed"].values()) >= 12, result
    assert result["killed"]["published"] >= 4, result
    assert result["published"] >= 40


def test_twenty_writers_that_nobody_kills_need_no_further_command(tmp_path: Path) -> None:
    result = race(tmp_path / "models", seed=3, rounds=2, kills=0)
    assert result == {"killed": {}, "published": 40, "faults": []}
