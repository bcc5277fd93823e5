"""The table of families against vLLM's own code: its registry, its LoRA layers, its loader of adapters.

The model is built by vLLM's class without weights, and nothing is generated: names, ranks and shapes are what is held
against it, for families that its CPU build cannot run as well.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.models.families import FAMILIES, WITHOUT_LORA, family_of, in_layer, published_name
from llm_tuning.models.targets import last
from tests.support.zoo import bare_config

REPO = Path(__file__).parents[2]
VLLM = REPO / ".venv-vllm" / "bin" / "python"
KINDS = ("qwen3", "qwen3_moe", "qwen3_5", "falcon_h1", "deepseek_v3")
"""Plain, a mixture of experts, a model that also sees, Mamba, multi-head latent attention."""


def ask(*question: str) -> Any:
    """Return what `tests/support/vllm_lora.py` answers in vLLM's environment."""
    script = REPO / "tests" / "support" / "vllm_lora.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [VLLM, "-P", script, *question], check=False, capture_output=True, text=True, env=environment, cwd="/"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_table_knows_which_classes_vllm_serves_a_lora_on() -> None:
    registry = ask("registry")
    without = {architecture for architecture, lora in registry.items() if not lora}
    assert without - WITHOUT_LORA == set(), "classes that vLLM has and whose LoRA it does not serve"
    assert {name for name in FAMILIES if not registry.get(name, True)} == set()
    assert {name for name in WITHOUT_LORA if registry.get(name)} == set(), "vLLM serves their LoRA by now"


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bases")
    for name in KINDS:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(bare_config(name)))
    answer = ask("reach", *(str(folder / name) for name in KINDS))
    return {Path(base).name: found for base, found in answer.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_layer_of_the_table_is_reached_under_its_published_name(name: str, reached: dict[str, Any]) -> None:
    family, found = family_of(bare_config(name)), reached[name]
    assert "error" not in found, found["error"]
    inside = {layer: way for layer, way in found["linears"].items() if in_layer(layer)}
    trained = {layer: way for layer, way in inside.items() if last(layer) in family.modules}
    assert trained
    assert {layer: way for layer, way in trained.items() if way != published_name(layer, family)} == {}
    untold = {last(layer) for layer, way in inside.items() if way and family.why_not(last(layer)) is None}
    assert untold <= set(family.modules), "layers that vLLM serves, and that are left out without a word"
    assert found["fused_in_pefts_form"] == family.fused_experts or not found["fused"]
