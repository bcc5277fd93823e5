"""Loading a base, the LoRA on it, looking past it, and the saved adapter."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.core_model_loading import MergeModulelist

from llm_tuning.errors import InputError
from llm_tuning.trainers.model import (
    attach_lora,
    bare_base,
    load_base_model,
    start_policy,
)
from llm_tuning.trainers.save import save_adapter

IDS = torch.arange(4, 24)[None]
REPO = Path(__file__).parents[3]


def load(base: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return load_base_model(base, device="cpu", dtype=dtype)


def attach(
    base: Path, *, rank: int = 4, seed: int = 1, start: Path | None = None, targets: str = "all-linear"
) -> PeftModel:
    return attach_lora(
        load(base), rank=rank, alpha=8, dropout=0.1, target_modules=targets, seed=seed, start_adapter=start
    )


def trained(model: PeftModel, *, seed: int = 0) -> PeftModel:
    """`model` with an adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    return model(input_ids=IDS, use_cache=False).logits


def trainable(model: PeftModel) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.fixture(scope="module")
def start_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "start"
    save_adapter(trained(attach(tiny_base)), tiny_base, folder, base_name=str(tiny_base))
    return folder


def test_a_base_comes_frozen_in_the_dtype_asked_for(tiny_base: Path) -> None:
    model = load(tiny_base, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_gpu_gets_the_base_tensor_by_tensor_and_the_host_no_copy(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for the GPU in the map, so transformers' own way of loading by a map is taken."""
    plain = load(tiny_base, torch.bfloat16).state_dict()
    read, maps = AutoModelForCausalLM.from_pretrained, []

    def from_pretrained(base: Path, **options: Any) -> Any:
        maps.append(options["device_map"])
        return read(base, **options | {"device_map": {"": "cpu"}})

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(torch.nn.Module, "to", lambda *_: pytest.fail("the whole model is moved"))
    model = load_base_model(tiny_base, device="cuda:3", dtype=torch.bfloat16)
    assert maps == [{"": "cuda:3"}]
    loaded = model.state_dict()
    assert loaded.keys() == plain.keys()
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)
    assert not hasattr(model, "hf_device_map")  # else accelerate refuses to train it


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), ValueError("odd")]
)
def test_what_goes_wrong_in_a_conversion_of_weights_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """transformers merges the experts as it loads, keeps the error of that to itself and points to its log."""
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    load(tmp_path)

    def merge(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(MergeModulelist, "convert", merge)
    with pytest.raises(RuntimeError, match=f" cannot be loaded: {error}$"):
        load(tmp_path)


def test_a_start_adapter_is_read_to_the_cpu_where_peft_would_take_the_first_gpu(
    tiny_base: Path, start_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, devices = peft.load_peft_weights, []

    def load_peft_weights(folder: str, device: str | None = None, **options: Any) -> Any:
        devices.append(device)
        return read(folder, device="cpu", **options)

    monkeypatch.setattr(peft, "load_peft_weights", load_peft_weights)
    monkeypatch.setattr(peft_model, "infer_device", lambda: "cuda")
    attach(tiny_base, start=start_adapter)
    assert set(devices) == {"cpu"}


def copy_of(base: Path, to: Path) -> Path:
    shutil.copytree(base, to)
    return to


def test_a_base_that_lacks_a_weight_is_refused_and_not_filled_with_random_numbers(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(base)


def test_a_weight_of_another_shape_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"][:-8].contiguous()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack lm_head\.weight, or have it in another shape"):
        load(base)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", '{"model_type": "no-such-model", "architectures": ["NoSuchModel"]}'),
        ("model.safetensors", "not safetensors at all"),
    ],
)
def test_a_base_that_transformers_cannot_load_is_an_input_error(
    tiny_base: Path, tmp_path: Path, file: str, content: str
) -> None:
    base = copy_of(tiny_base, tmp_path / "base")
    (base / file).write_text(content)
    with pytest.raises(InputError, match=r"model\.path: .* cannot be loaded"):
        load(base)


def test_a_fresh_adapter_changes_nothing_depends_on_the_seed_and_is_fp32(tiny_base: Path) -> None:
    plain = logits(load(tiny_base))
    one, same, other = attach(tiny_base, seed=5), attach(tiny_base, seed=5), attach(tiny_base, seed=6)
    torch.testing.assert_close(logits(one), plain, rtol=0, atol=0)
    first = dict(one.named_parameters())
    for name in trainable(one):
        assert first[name].dtype is torch.float32
        assert torch.equal(first[name], dict(same.named_parameters())[name])
    a_weights = next(name for name in trainable(one) if "lora_A" in name)
    assert not torch.equal(first[a_weights], dict(other.named_parameters())[a_weights])


def test_lora_on_a_bf16_base_is_fp32(tiny_base: Path) -> None:
    model = attach_lora(
        load(tiny_base, torch.bfloat16), rank=4, alpha=8, dropout=0.0, target_modules=["q_proj"], seed=0
    )
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert all("q_proj" in name for name in trainable(model))


def test_dropout_is_on_from_the_start(tiny_base: Path) -> None:
    model = trained(attach(tiny_base))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("no_such_module", "no_such_module names no linear module of this model; use all-linear"),
        ("q_proj,lm_head", r"includes lm_head \(embeddings or output layer\), which LoRA does not train here"),
        ("embed_tokens", r"includes model.embed_tokens \(embeddings or output layer\)"),
    ],
)
def test_target_modules_that_cannot_be_are_an_input_error(tiny_base: Path, targets: str, message: str) -> None:
    with pytest.raises(InputError, match=f"lora.targetModules: .*{message}"):
        attach(tiny_base, targets=targets.split(","))


def test_training_from_a_start_adapter_begins_where_it_ended(tiny_base: Path, start_adapter: Path) -> None:
    from_start = attach(tiny_base, seed=9, start=start_adapter)
    torch.testing.assert_close(logits(from_start), logits(trained(attach(tiny_base))), rtol=0, atol=0)
    assert trainable(from_start) == trainable(attach(tiny_base))
    assert all(".default." in name for name in trainable(from_start))


def test_the_start_policy_stays_what_it_was_while_the_adapter_trains(tiny_base: Path, start_adapter: Path) -> None:
    model = attach(tiny_base, start=start_adapter)
    before = logits(model)
    was_trainable = trainable(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.mul_(2)
    tuned = logits(model)
    assert not torch.allclose(tuned, before)
    with start_policy(model):
        torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
        assert trainable(model) == []
    with bare_base(model):
        torch.testing.assert_close(logits(model), logits(load(tiny_base)), rtol=0, atol=0)
    assert trainable(model) == was_trainable
    torch.testing.assert_close(logits(model), tuned, rtol=0, atol=0)


def test_without_a_start_adapter_the_start_policy_is_the_bare_base(tiny_base: Path) -> None:
    model = trained(attach(tiny_base))
    with start_policy(model):
        torch.testing.assert_close(logits(model), logits(load(tiny_base)), rtol=0, atol=0)


def test_a_start_adapter_of_another_rank_is_refused_with_the_rank_to_set(tiny_base: Path, start_adapter: Path) -> None:
    with pytest.raises(InputError, match=r"lora\.rank: is 8 but the start adapter has 4; set lora\.rank to 4"):
        attach(tiny_base, rank=8, start=start_adapter)


def test_a_saved_adapter_loads_in_plain_peft_and_gives_the_same_logits(tiny_base: Path, tmp_path: Path) -> None:
    model = trained(attach(tiny_base))
    save_adapter(model, tiny_base, tmp_path / "stage", base_name="base/tiny-llama", chat_template="{{ messages }}")
    loaded = PeftModel.from_pretrained(load(tiny_base), tmp_path / "stage")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_what_is_saved_is_what_vllm_serves(tiny_base: Path, tmp_path: Path) -> None:
    save_adapter(
        trained(attach(tiny_base)), tiny_base, tmp_path / "stage", base_name="base/tiny-llama", chat_template="{{ 1 }}"
    )
    config = json.loads((tmp_path / "stage" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base/tiny-llama"
    assert (config["use_dora"], config["bias"], config["modules_to_save"]) == (False, "none", None)
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"
    ]  # fmt: skip
    assert (tmp_path / "stage" / "chat_template.jinja").read_text() == "{{ 1 }}"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "stage" / name).read_bytes() == (tiny_base / name).read_bytes()


SAVES = """
import sys
from pathlib import Path
import torch
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.save import save_adapter
base = Path(sys.argv[1])
model = load_base_model(base, device="cpu", dtype=torch.float32)
lora = attach_lora(model, rank=4, alpha=8, dropout=0.1, target_modules="all-linear", seed=3)
save_adapter(lora, base, Path(sys.argv[2]), base_name="base")
"""


def test_another_process_saves_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    """PEFT keeps target_modules in a set, and the order of a set of strings is another one in every process."""
    here, there = tmp_path / "here", tmp_path / "there"
    save_adapter(attach(tiny_base, seed=3), tiny_base, here, base_name="base")
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", SAVES, str(tiny_base), str(there)], check=True, env=environment)
    assert sorted(path.name for path in here.iterdir()) == sorted(path.name for path in there.iterdir())
    for path in here.iterdir():
        assert path.read_bytes() == (there / path.name).read_bytes(), path.name
