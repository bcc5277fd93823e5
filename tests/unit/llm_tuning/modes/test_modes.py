"""The list of modes is the one place that knows them; what is built from it follows."""

from __future__ import annotations

import re
import tokenize
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from llm_tuning import modes
from llm_tuning.api import TuningConfig, TuningJobSpec
from llm_tuning.api.flags import config_flags
from llm_tuning.client.specs import TuneFields
from llm_tuning.data.labels import LabelField
from llm_tuning.data.pairing import Pairing
from llm_tuning.modes import MODES, ModeSettings, all_scores, register
from llm_tuning.modes.sft import SFT

ROOT = Path(__file__).parents[4]
RECIPES = (
    "trainers/sft.py",
    "trainers/ppo*.py",
    "trainers/kl_target.py",
    "trainers/dpo.py",
    "trainers/kto.py",
    "trainers/mismatched.py",
)
"""Of the package's own modes, with the parts that only one of them has."""
METHODS = "openai_api/**/*.py"
"""Where OpenAI's methods are, which are two, and share their names with modes."""
WORD = re.compile(rf"(?<![\w.])({'|'.join(MODES)})(?![\w])")


def sources() -> list[Path]:
    library, operator = ROOT / "llm_tuning", ROOT / "operator/tuning_operator"
    allowed = {path for part in ("modes/*.py", METHODS, *RECIPES) for path in library.glob(part)}
    return [path for folder in (library, operator) for path in folder.rglob("*.py") if path not in allowed]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_mode_is_named_outside_of_modes_recipes_and_documentation(path: Path) -> None:
    """Neither in code nor in a comment or docstring; an import of a mode's own module names its file."""
    with path.open("rb") as stream:
        named = [
            f"{token.start[0]}: {token.line.strip()}"
            for token in tokenize.tokenize(stream.readline)
            if WORD.search(token.string) and not token.line.startswith("from llm_tuning.modes")
        ]
    assert not named, f"{path}: ask the mode instead"


def test_every_recipe_and_settings_group_is_there() -> None:
    for mode in MODES.values():
        assert find_spec(mode.recipe) is not None
    groups = {mode.name for mode in MODES.values() if mode.settings is not None}
    assert set(ModeSettings.__annotations__) == groups, "editors complete the groups of the package's own modes"
    assert groups <= set(TuneFields.__annotations__)
    assert groups <= set(TuningConfig.model_fields) & set(TuningJobSpec.model_fields)
    for group in groups:
        assert {flag.name for flag in config_flags() if flag.path[0] == group} == {
            f"{group}_{name}" for name in (MODES[group].settings or TuningConfig).model_fields
        }


def test_each_score_is_shown_once() -> None:
    names = [score.name for score in all_scores()]
    assert len(names) == len(set(names))
    assert names[0] == "loss"


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "with space", "a" * 17])
def test_a_name_that_could_be_no_flag_and_no_field_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the mode's name must match"):
        replace(SFT, name=name)


def test_a_mode_that_comes_after_the_models_is_refused() -> None:
    """They are built already, and it would be in some and not in others."""
    with pytest.raises(RuntimeError, match=r"mode late comes too late: register it before .* LLM_TUNING_MODES"):
        register(replace(SFT, name="late"))
    assert "late" not in modes.MODES


def test_settings_decide_how_rows_are_read() -> None:
    dataset = {"model": {"path": "m"}, "dataset": {"path": "d"}}
    for mode in MODES.values():
        config = TuningConfig.parse({**dataset, "mode": mode.name})
        form = mode.form_of(config)
        assert (form.mode, form.pairing, form.number) == (mode.name, mode.rows.pairing, mode.rows.number)
        assert set(mode.row_settings) <= set(mode.settings.model_fields if mode.settings is not None else ())
    paired = TuningConfig.parse({**dataset, "mode": "dpo", "dpo": {"minDifference": 2.0, "maxPairsPerPrompt": 3}})
    assert MODES["dpo"].form_of(paired).pairing == Pairing(2.0, 3)
    rated = TuningConfig.parse({**dataset, "mode": "kto", "kto": {"threshold": 4.0}})
    number = MODES["kto"].form_of(rated).number
    assert isinstance(number, LabelField)
    assert number.threshold == 4
