"""Every reason for which an adapter is refused before a load, with both sides named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.agent.fit import find_misfit
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.engines.plan import Lookup
from tests.unit.llm_tuning.agent.conftest import PLAN, TEMPLATE, write_adapter

OTHER_HASH = "c" * 64


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 16},
        {"template": TEMPLATE},
        {"template": f"{TEMPLATE}\n"},
        {"base_hash": ""},
        {"modules": ("q_proj", "down_proj")},
        {"dtype": "float32"},
        {"config": {"rank_pattern": {"q_proj": 16}}},
    ],
    ids=str,
)
def test_fitting(tmp_path: Path, options: dict[str, Any]) -> None:
    assert find_misfit(write_adapter(tmp_path, "ft_a", **options), PLAN) is None


def spoil_weights(folder: Path) -> None:
    """Other weights than were published, of the same size."""
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")


def write(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))

    return change


REASONS: list[tuple[dict[str, Any], Callable[[Path], None] | None, AdapterReason, tuple[str, ...]]] = [
    (
        {"base_hash": OTHER_HASH},
        None,
        AdapterReason.BASE_MISMATCH,
        ("trained on tiny (weights cccccccccccc)", "serves base (weights bbbbbbbbbbbb)"),
    ),
    ({"rank": 32}, None, AdapterReason.RANK_TOO_HIGH, ("rank 32", "at most 16", "maxLoraRank to 32")),
    ({"rank": 17}, None, AdapterReason.RANK_TOO_HIGH, ("rank 17", "at most 16", "maxLoraRank to 32")),
    (
        {"config": {"rank_pattern": {"q_proj": 64}}},
        None,
        AdapterReason.RANK_TOO_HIGH,
        ("rank 64", "maxLoraRank to 64"),
    ),
    (
        {"modules": ("q_proj", "lm_head", "c_attn")},
        None,
        AdapterReason.TARGET_MODULES_MISMATCH,
        ("changes c_attn, lm_head,", "prepared for down_proj, gate_proj"),
    ),
    (
        {"template": "{{ other }}"},
        None,
        AdapterReason.TEMPLATE_MISMATCH,
        ("its own chat_template.jinja", "base/tiny's own template"),
    ),
    ({}, spoil_weights, AdapterReason.ADAPTER_INVALID, ("is not the file that model.json describes",)),
    (
        {"manifest": {"model_id": "ft_other"}},
        None,
        AdapterReason.ADAPTER_INVALID,
        ("models/ft_bad holds the adapter ft_other",),
    ),
    ({"rank": 1024}, None, AdapterReason.ADAPTER_INVALID, ("rank 1024", "at most 512")),
    ({"modules": ()}, None, AdapterReason.ADAPTER_INVALID, ("holds no LoRA weights",)),
    ({"config": {"peft_type": "IA3"}}, None, AdapterReason.ADAPTER_INVALID, ("type IA3",)),
    ({"config": {"use_dora": True}}, None, AdapterReason.ADAPTER_INVALID, ("use_dora",)),
    ({"config": {"modules_to_save": ["lm_head"]}}, None, AdapterReason.ADAPTER_INVALID, ("modules_to_save",)),
    ({"config": {"r": "8"}}, None, AdapterReason.ADAPTER_INVALID, ("r must be a whole number",)),
    ({}, write("adapter_config.json", "{"), AdapterReason.ADAPTER_INVALID, ("cannot be read as JSON",)),
    ({}, write("model.json", "[]"), AdapterReason.ADAPTER_INVALID, ("must hold a JSON object",)),
    ({}, write("adapter_model.bin", "pickle"), AdapterReason.ADAPTER_INVALID, ("pickled weights",)),
    ({}, write("adapter_model.safetensors", "no"), AdapterReason.ADAPTER_INVALID, ("cannot be read",)),
    (
        {"dtype": "float32"},
        lambda folder: (folder / "model.json").unlink(),
        AdapterReason.ADAPTER_INVALID,
        ("has no model.json",),
    ),
]


@pytest.mark.parametrize(
    ("options", "change", "reason", "words"), REASONS, ids=[f"{case[2]}: {case[3][0]}" for case in REASONS]
)
def test_misfits(
    tmp_path: Path,
    options: dict[str, Any],
    change: Callable[[Path], None] | None,
    reason: AdapterReason,
    words: tuple[str, ...],
) -> None:
    folder = write_adapter(tmp_path, "ft_bad", **options)
    if change is not None:
        change(folder)
    misfit = find_misfit(folder, PLAN)
    assert misfit is not None
    assert misfit.reason == reason
    for word in words:
        assert word in misfit.message


def test_an_adapter_that_is_not_there(tmp_path: Path) -> None:
    misfit = find_misfit(tmp_path / "ft_none", PLAN)
    assert misfit is not None
    assert misfit.reason == AdapterReason.ADAPTER_NOT_FOUND
    assert "models/ft_none" in misfit.message
    (tmp_path / "ft_file").write_text("")
    assert find_misfit(tmp_path / "ft_file", PLAN) is not None


def test_another_base_is_told_also_by_the_probes_alone(tmp_path: Path) -> None:
    """`model.json` of an older version names no base."""
    folder = write_adapter(tmp_path, "ft_a", manifest={"base": None})
    write("parity.json", {"version": 1, "base_weight_hash": OTHER_HASH, "probes": []})(folder)
    misfit = find_misfit(folder, PLAN)
    assert misfit is not None
    assert misfit.reason == AdapterReason.BASE_MISMATCH
    assert "another base" in misfit.message


def test_the_same_adapter_fits_an_engine_made_for_it(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, "ft_a", rank=64, modules=("lm_head",), template="{{ x }}", base_hash=OTHER_HASH)
    plan = replace(
        PLAN,
        max_lora_rank=64,
        target_modules=(*PLAN.target_modules, "lm_head"),
        template="{{ x }}",
        base_hash=OTHER_HASH,
    )
    assert find_misfit(folder, plan) is None


@pytest.mark.parametrize(
    ("inside", "modules", "words"),
    [
        ("model.layers.0.self_attn.", ("q_proj",), "rename its tensors"),
        ("model.visual.blocks.0.attn.", ("qkv",), "spec.vllm.languageModelOnly: false"),
        ("model.language_model.layers.0.mlp.experts.", ("base_layer",), "experts in one tensor"),
    ],
)
def test_names_that_vllm_would_not_find(tmp_path: Path, inside: str, modules: tuple[str, ...], words: str) -> None:
    """Before the modules are compared: those of the language model alone have the right last words."""
    folder = write_adapter(tmp_path, "ft_a", inside=inside, modules=modules)
    lookup = Lookup(architecture="Llama4ForConditionalGeneration", nested=True)
    misfit = find_misfit(folder, replace(PLAN, lookup=lookup))
    assert misfit is not None
    assert misfit.reason == AdapterReason.TARGET_MODULES_MISMATCH
    assert words in misfit.message


def test_an_engine_without_lora_takes_none(tmp_path: Path) -> None:
    misfit = find_misfit(write_adapter(tmp_path, "ft_a"), replace(PLAN, without_lora="base/tiny is one without LoRA"))
    assert misfit is not None
    assert misfit.reason == AdapterReason.BASE_WITHOUT_LORA
    assert misfit.message == "base/tiny is one without LoRA: the base is served alone"


def test_every_reason_of_a_misfit_is_tested() -> None:
    tested = {reason for _, _, reason, _ in REASONS}
    assert tested == {
        AdapterReason.ADAPTER_INVALID,
        AdapterReason.BASE_MISMATCH,
        AdapterReason.RANK_TOO_HIGH,
        AdapterReason.TEMPLATE_MISMATCH,
        AdapterReason.TARGET_MODULES_MISMATCH,
    }
