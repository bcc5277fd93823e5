"""The training modes: `MODES` is the one list that flags, CRD, check, plan, manifest, card and report read.

A mode from outside the package is an object like SFT and PPO in these files. Two ways add it:

- a module named in the environment variable LLM_TUNING_MODES (several with commas between), which calls `register`
  when it is imported. Every process finds it so: the command line, its workers, the pods of an image that has it;
- a call of `register` before `llm_tuning.api` is imported, for a program of one's own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypedDict

from llm_tuning.data.rows import FORMS
from llm_tuning.modes.dpo import DPO, DpoSpec
from llm_tuning.modes.kto import KTO, KtoSpec
from llm_tuning.modes.mode import CALL_SCORES, SCORES, Line, Memory, Mode, Panel, Score
from llm_tuning.modes.ppo import PPO, PpoSpec
from llm_tuning.modes.sft import SFT

__all__ = [
    "DEFAULT_MODE",
    "MODES",
    "Line",
    "Memory",
    "Mode",
    "ModeSettings",
    "Panel",
    "Score",
    "all_scores",
    "close",
    "register",
]

MODULES_VARIABLE = "LLM_TUNING_MODES"
DEFAULT_MODE = SFT.name

_modes: dict[str, Mode[Any]] = {mode.name: mode for mode in (SFT, PPO, DPO, KTO)}
FORMS.update((mode.name, mode.rows) for mode in _modes.values())
MODES: Mapping[str, Mode[Any]] = MappingProxyType(_modes)
"""Every mode by its name, in the order in which help texts list them."""
_closed: list[bool] = []


class ModeSettings(TypedDict, total=False):
    """The settings groups of the package's own modes, for editors and type checkers."""

    ppo: Mapping[str, Any] | PpoSpec
    dpo: Mapping[str, Any] | DpoSpec
    kto: Mapping[str, Any] | KtoSpec


def register(mode: Mode[Any]) -> None:
    """Add `mode`; the models of `llm_tuning.api` are built from the list, so it comes before their import."""
    if _closed:
        raise RuntimeError(
            f"mode {mode.name} comes too late: register it before llm_tuning.api is imported, "
            f"or name its module in {MODULES_VARIABLE}"
        )
    if mode.name in _modes:
        raise ValueError(f"there is a mode {mode.name} already")
    _modes[mode.name] = mode
    FORMS[mode.name] = mode.rows


def close() -> tuple[Mode[Any], ...]:
    """Return all modes; none can be added from here on, for models are built from them."""
    _closed.append(True)
    return tuple(_modes.values())


def all_scores() -> list[Score]:
    """Return what any mode is measured by: the common scores, those of calls, then those of each mode, each once."""
    common = (*SCORES, *CALL_SCORES)
    return list({score.name: score for score in (*common, *(s for m in MODES.values() for s in m.scores))}.values())


for _module in filter(None, os.environ.get(MODULES_VARIABLE, "").split(",")):
    importlib.import_module(_module.strip())
