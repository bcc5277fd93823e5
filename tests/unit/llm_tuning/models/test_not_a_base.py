"""What people give for a base and is none gets its own sentence: what it is, and what to give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import inspect_base
from llm_tuning.models.trainable import quantisation_said
from tests.support.rights import modes_of_files_count

LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
SAFETENSORS = (2).to_bytes(8, "little") + b"{}"
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]})
Make = Callable[[Path], object]


def base(folder: Path) -> Path:
    return files(folder, **{"config.json": CONFIG, "model.safetensors": SAFETENSORS, "tokenizer.json": "{}"})


def files(folder: Path, *names: str, **contents: str | bytes) -> Path:
    for name, content in {**dict.fromkeys(names, ""), **contents}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def refusal(path: str | Path, **more: str) -> Problem:
    with pytest.raises(InputError) as error:
        inspect_base(path, **more)
    (problem,) = error.value.problems
    return problem


def test_a_base_is_one_whatever_lies_beside_it(tmp_path: Path) -> None:
    """The same weights in other forms, a training's own files: what is there is whole."""
    folder = files(
        base(tmp_path / "b"),
        "model-q4.gguf",
        "consolidated.safetensors",
        "onnx/model.onnx",
        "original/params.json",
        "optimizer.pt",
        "trainer_state.json",
        "tf_model.h5",
    )
    assert inspect_base(folder).name == "b"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("hf://Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B/tree/main", "Qwen/Qwen3-0.6B"),
        ("huggingface.co/Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    ],
)
def test_a_name_on_the_hub_is_fetched_first(
    given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(given).fix == f"it looks like a name on the hub: {{set:model.uri=hf://{name}}}"


@pytest.mark.parametrize("given", ["base/qwen", "/nowhere/qwen", "./a/b", "qwen", "a/b/c", "../Qwen/Qwen3"])
def test_a_path_that_is_not_there_is_no_name_on_the_hub(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    problem = refusal(given)
    assert (problem.rule, "hf://" in problem.fix) == ("does not exist", False)


def adapter(folder: Path, *more: str) -> Path:
    config = json.dumps({"base_model_name_or_path": "Qwen/Qwen3-0.6B", "peft_type": "LORA"})
    return files(folder, "adapter_model.safetensors", "tokenizer.json", *more, **{"adapter_config.json": config})


def test_an_adapter_is_given_as_one(tmp_path: Path) -> None:
    problem = refusal(adapter(tmp_path / "ours", "model.json"), adapter_as="--init_adapter")
    assert problem.rule == "is an adapter of Qwen/Qwen3-0.6B, not a base"
    assert problem.fix == "give that base here, and the adapter as --init_adapter"
    foreign = refusal(adapter(tmp_path / "foreign"), adapter_as="--init_adapter")
    assert "has to be merged into its base first" in foreign.fix
    assert refusal(adapter(tmp_path / "served")).fix == "give that base here"


def cache(folder: Path) -> Path:
    base(folder / "snapshots" / "c1899de")
    return files(folder, "refs/main", "blobs/x")


KINDS: dict[str, tuple[Make, str, str]] = {
    # what it is: (how it looks, the rule, the fix)
    "GGUF": (lambda f: files(f, "model-Q4_K_M.gguf", "README.md"), "holds GGUF weights", "config.json and model.safet"),
    "GGUF and a config": (
        lambda f: files(f, "m.gguf", "config.json"),
        "holds GGUF weights",
        "GGUF is the form of llama",
    ),
    "old GGML": (lambda f: files(f, "ggml-model-q4_0.bin"), "holds GGUF weights", "llama.cpp"),
    "hub cache": (
        lambda f: cache(f / "models--Qwen--Qwen3-0.6B").rename(f.parent / "models--Qwen--Qwen3-0.6B"),
        "is the hub's cache of Qwen/Qwen3-0.6B",
        "models--Qwen--Qwen3-0.6B/snapshots/c1899de",
    ),
    "whole hub cache": (lambda f: cache(f / "models--Qwen--Qwen3-0.6B"), "is a cache of the hub", "snapshots/"),
    "one level up": (lambda f: base(f / "qwen3"), "holds no model itself", "model/qwen3"),
    "several below": (lambda f: (base(f / "a"), base(f / "b")), "holds no model itself", "model/a or "),
    "LFS weights": (
        lambda f: files(base(f), **{"model.safetensors": LFS, "tokenizer.json": LFS}),
        "holds pointers of Git LFS in place of files: model.safetensors, tokenizer.json",
        "git lfs pull",
    ),
    "LFS shards": (
        lambda f: files(
            f,
            **{
                "config.json": CONFIG,
                "model.safetensors.index.json": "{}",
                **{f"model-{i}.safetensors": LFS for i in range(5)},
            },
        ),
        "model-0.safetensors, model-1.safetensors, model-2.safetensors and 2 more",
        "git lfs pull",
    ),
    "LFS in a GGUF's repository": (lambda f: files(f, **{"m.gguf": LFS}), "pointers of Git LFS", "git lfs pull"),
    "Mistral's form": (
        lambda f: files(f, "params.json", "tekken.json", "consolidated.safetensors"),
        "has weights in Mistral's own form only (consolidated.safetensors)",
        "config.json and model.safetensors",
    ),
    "Meta's form": (
        lambda f: files(f, "params.json", "consolidated.00.pth", "tokenizer.model"),
        "Meta's own",
        "give the",
    ),
    "MLX": (lambda f: files(f, "config.json", "weights.npz"), "the form of MLX", "give the model's folder"),
    "ONNX": (lambda f: files(f, "config.json", "onnx/model.onnx"), "the form of ONNX", "give the model's folder"),
    "ONNX beside the config": (lambda f: files(f, "config.json", "model_q4.onnx"), "the form of ONNX", "give the"),
    "OpenVINO": (lambda f: files(f, "config.json", "openvino_model.xml"), "the form of OpenVINO", "give the"),
    "TensorFlow": (lambda f: files(f, "config.json", "tf_model.h5"), "TensorFlow or Flax only", "give the"),
    "checkpoint of a LoRA": (
        lambda f: files(f, "adapter_model.safetensors", "optimizer.pt", "trainer_state.json"),
        "is a checkpoint of a training",
        "continues from its checkpoints by itself",
    ),
    "checkpoint without weights": (
        lambda f: files(f, "config.json", "optimizer.pt", "scheduler.pt"),
        "is a checkpoint of a training",
        "give the base that it trains",
    ),
    "DeepSpeed": (
        lambda f: files(f, "config.json", "latest", "zero_to_fp32.py", "global_step500/mp_rank_00_model_states.pt"),
        "is a checkpoint of DeepSpeed",
        "zero_to_fp32.py",
    ),
    "FSDP": (lambda f: files(f, "config.json", "pytorch_model_fsdp_0/__0_0.distcp"), "of FSDP", "merge-weights"),
    "FSDP's parts": (lambda f: files(f, "__0_0.distcp", ".metadata"), "of FSDP", "merge-weights"),
    "Megatron": (lambda f: files(f, "latest_checkpointed_iteration.txt"), "of Megatron", "convert it"),
    "sentence-transformers": (
        lambda f: files(base(f), "modules.json", "config_sentence_transformers.json"),
        "is a sentence-transformers model",
        "give a language model",
    ),
    "diffusers": (lambda f: base(files(f, "model_index.json") / "unet"), "is a diffusers pipeline", "a language model"),
    "unfinished": (
        lambda f: files(f, "config.json", ".cache/huggingface/download/x.incomplete"),
        "is a download that has not been finished",
        "again",
    ),
    "shards without index": (
        lambda f: files(f, "config.json", "model-00001-of-00002.safetensors"),
        "has weights under another name",
        "copy the index",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_told(tmp_path: Path, kind: str) -> None:
    make, rule, fix = KINDS[kind]
    folder = tmp_path / "model"
    folder.mkdir()
    made = make(folder)
    problem = refusal(made if kind == "hub cache" and isinstance(made, Path) else folder)
    assert rule in problem.rule
    assert fix in problem.fix


def test_a_folder_in_a_base_leads_to_the_base(tmp_path: Path) -> None:
    folder = base(tmp_path / "model")
    part = files(folder / "original", "params.json", "consolidated.00.pth")
    problem = refusal(part)
    assert (problem.rule, problem.fix) == ("is a part of a model", f"give the whole: {folder}")


@pytest.mark.parametrize(
    ("name", "rule", "fix"),
    [
        ("m.gguf", "is a GGUF file", "llama.cpp"),
        ("model.safetensors", "is a file, not a folder", "give the folder that it lies in"),
        ("config.json", "is a file, not a folder", "give the folder that it lies in"),
        ("model.tar.gz", "is an archive", "unpack it"),
        ("notes.txt", "is a file, not a folder", "config.json and the weights"),
    ],
)
def test_a_file_is_told(tmp_path: Path, name: str, rule: str, fix: str) -> None:
    problem = refusal(files(tmp_path, name) / name)
    assert (problem.rule, fix in problem.fix) == (rule, True)


def test_an_empty_folder_still_says_what_a_base_has(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        inspect_base(files(tmp_path / "empty", "README.md"))
    rules = [problem.rule for problem in error.value.problems]
    assert rules == ["has no config.json", "has no weights (model.safetensors)", "has no tokenizer"]


def test_a_folder_above_that_cannot_be_listed_is_no_fault(tmp_path: Path) -> None:
    folder = files(tmp_path / "closed" / "model", "README.md")
    (tmp_path / "closed").chmod(0o311)
    with modes_of_files_count():
        with pytest.raises(PermissionError):
            list((tmp_path / "closed").iterdir())
        with pytest.raises(InputError, match=r"has no config\.json"):
            inspect_base(folder)


def test_weights_that_mlx_has_quantised_are_named(tmp_path: Path) -> None:
    config = {"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}}
    assert quantisation_said(tmp_path, config) == "mlx"
