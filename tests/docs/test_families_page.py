"""docs/families.json against the table of what is served and against the zoo that it is made from."""

from __future__ import annotations

import json
from pathlib import Path

from llm_tuning.models.families import FAMILIES
from tests.support.zoo import families

RECORD = Path(__file__).parents[2] / "docs/families.json"
ALIASES = {"PhimoeForCausalLM": "PhiMoEForCausalLM"}
"""What transformers calls an architecture that the hub has under another name."""


def test_every_architecture_whose_lora_is_served_is_in_the_zoo() -> None:
    tried = {family.architecture or family.class_name for family in families().values()}
    assert {ALIASES.get(name, name) for name in FAMILIES} <= tried


def test_every_recorded_family_is_still_tried() -> None:
    assert json.loads(RECORD.read_text())["families"].keys() <= families().keys()
