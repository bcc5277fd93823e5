"""Puts the stand-in in the place of the trainer: `llm_tuning.pod.train` is `stand_in.py`, all else stays the real one.

Python imports this module at its start because its folder is on PYTHONPATH.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

REPLACED = "llm_tuning.pod.train"


class StandInFinder:
    """Finds one module elsewhere than Python would."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return spec_from_file_location(name, Path(__file__).with_name("stand_in.py")) if name == REPLACED else None


sys.meta_path.insert(0, StandInFinder)  # type: ignore[arg-type]
