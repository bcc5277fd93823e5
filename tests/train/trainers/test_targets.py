"""What gets a LoRA on bases of real families, how its tensors are named, and that PEFT and a next run read it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from llm_tuning.api import LoraSpec
from llm_tuning.errors import InputError
from llm_tuning.models.base import inspect_base, read_config
from llm_tuning.models.families import family_of
from llm_tuning.models.shape import read_shape
from llm_tuning.models.targets import find_targets
from llm_tuning.trainers.model import attach_lora, linear_targets, load_base_model
from llm_tuning.trainers.save import save_adapter
from tests.support.zoo import make_base

ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]
PLAIN = sorted([*ATTENTION, "gate_proj", "up_proj", "down_proj"])
DELTA = ["in_proj_a", "in_proj_b", "in_proj_qkv", "in_proj_z", "out_proj"]
TRAINED = {
    "qwen3_moe": ATTENTION,
    "qwen3_5": sorted([*PLAIN, *DELTA]),
    "gemma3_mm": PLAIN,
    "falcon_h1": sorted([*PLAIN, "in_proj"]),
}
LEFT_OUT = {"qwen3_moe": {"experts", "gate"}, "falcon_h1": {"out_proj"}}
TOKENS = torch.arange(1, 33)[None]


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_moe", "gemma3_mm", "falcon_h1"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(request.param, tmp_path_factory.mktemp("zoo") / request.param)


def attach(base: Path, *, targets: str = "all-linear", start: Path | None = None) -> PeftModel:
    model = load_base_model(base, device="cpu", dtype=torch.float32)
    family = family_of(read_config(base))
    names = linear_targets(model, family, targets)
    return attach_lora(
        model, rank=4, alpha=8, dropout=0.0, target_modules=names, seed=1, start_adapter=start, family=family
    )


def with_effect(model: PeftModel) -> PeftModel:
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            parameter.data.normal_(std=0.02)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def saved(model: PeftModel, base: Path, folder: Path) -> Path:
    save_adapter(model, base, folder, base_name=str(base))
    return folder


def test_all_linear_is_what_is_served_and_every_layer_of_it_learns(base: Path) -> None:
    model = attach(base)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    dead = [name for name, parameter in trained.items() if "lora_B" in name and not parameter.grad.abs().sum()]
    assert dead == []
    assert sorted({name.split(".lora_")[0].rpartition(".")[2] for name in trained}) == TRAINED[base.name]
    assert not any("visual" in name or "vision" in name for name in trained)


def test_the_check_and_the_plan_know_what_is_trained(base: Path) -> None:
    model = attach(base)
    targets = find_targets(inspect_base(base), LoraSpec())
    assert sorted(targets.modules) == TRAINED[base.name]
    assert set(targets.left_out) == LEFT_OUT.get(base.name, set())
    layers = {name.removeprefix("base_model.model.") for name in model.base_model.targeted_module_names}
    planned = read_shape(base).targets(LoraSpec())
    assert len(planned) == len(layers)
    counted = sum(4 * (linear.inputs + linear.outputs) for linear in planned)
    assert counted == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("base", "asked", "rule"),
    [
        ("qwen3_moe", "q_proj,gate", r"gate is not trained: the router .*it has q_proj, k_proj, v_proj, o_proj"),
        ("qwen3_moe", "experts", r"experts is not trained: vLLM's LoRA takes fused experts in another form"),
        ("qwen3_moe", "q_proj,up_proj", r"up_proj is not trained: vLLM's LoRA takes fused experts in another form"),
        ("qwen3_moe", "lm_head", r"lm_head is not trained: the losses"),
        ("qwen3_moe", "q_proj,c_attn", r"c_attn is no module of this model; it has q_proj"),
        ("gemma3_mm", "fc1", r"fc1 is no layer of the language model"),
        ("falcon_h1", "out_proj", r"out_proj is not trained: Mamba's kernels"),
        ("falcon_h1", "conv1d", r"conv1d is no layer of the language model whose LoRA vLLM serves"),
    ],
    indirect=["base"],
)
def test_a_name_that_cannot_be_trained_is_refused_at_the_check(base: Path, asked: str, rule: str) -> None:
    with pytest.raises(InputError, match=rf"lora.targetModules: {rule}"):
        find_targets(inspect_base(base), LoraSpec(target_modules=asked))


def test_plain_peft_and_the_next_run_read_what_is_published(base: Path, tmp_path: Path) -> None:
    model = with_effect(attach(base))
    want = logits(model)
    folder = saved(model, base, tmp_path / "adapter")
    model_class = getattr(transformers, family_of(read_config(base)).model_class)
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(base, dtype=torch.float32), folder)
    torch.testing.assert_close(logits(loaded), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(attach(base, start=folder)), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", ["all-linear", "layers.1.self_attn.q_proj"])
@pytest.mark.parametrize("base", ["llama4_mm"], indirect=True)
def test_plain_peft_puts_nothing_on_a_tower_whose_layers_have_the_same_names(
    base: Path, tmp_path: Path, asked: str
) -> None:
    model = with_effect(attach(base, targets=asked))
    want = logits(model)
    folder = saved(model, base, tmp_path / "adapter")
    model_class = getattr(transformers, family_of(read_config(base)).model_class)
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(base, dtype=torch.float32), folder)
    has = {name.replace(".default", "") for name, _ in loaded.named_parameters() if ".lora_" in name}
    assert has == set(load_file(folder / "adapter_model.safetensors"))
    torch.testing.assert_close(logits(loaded.get_submodule("base_model.model.language_model")), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(attach(base, start=folder)), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("base", ["qwen3_5"], indirect=True)
def test_the_servers_names_are_published_and_older_ones_read(base: Path, tmp_path: Path) -> None:
    model = with_effect(attach(base))
    want = logits(model)
    folder = saved(model, base, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".layers.")[0] for name in weights} == {"base_model.model.model.language_model"}
    older = {name.replace("model.language_model.", "model."): weight for name, weight in weights.items()}
    save_file(older, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(logits(attach(base, start=folder)), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 32}},
        {"layers_to_transform": [0]},
        {"use_rslora": True},
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
    ],
)
def test_a_start_adapter_keeps_its_whole_configuration(
    tiny_base: Path, tmp_path: Path, given: dict[str, object]
) -> None:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | given
    model = get_peft_model(load_base_model(tiny_base, device="cpu", dtype=torch.float32), LoraConfig(**settings))
    want = logits(with_effect(model))
    model.save_pretrained(tmp_path / "start")
    began = attach(tiny_base, start=tmp_path / "start")
    torch.testing.assert_close(logits(began), want, rtol=0, atol=1e-5)
    again = saved(began, tiny_base, tmp_path / "again")
    loaded = PeftModel.from_pretrained(load_base_model(tiny_base, device="cpu", dtype=torch.float32), again)
    torch.testing.assert_close(logits(loaded), want, rtol=0, atol=1e-5)
    config = json.loads((again / "adapter_config.json").read_text())
    assert all(config[name] == value for name, value in given.items() if name != "target_modules")
