from __future__ import annotations

import pytest

from llm_tuning.sources.listing import RemoteFile
from llm_tuning.sources.reasons import SourceRefused, Terminal
from llm_tuning.sources.selection import check_configurations, select
from llm_tuning.sources.uri import parse_uri

MODEL = parse_uri("hf://o/n", "model")
TAKEN = [
    "LICENSE",
    "README.md",
    "additional_chat_templates/tool_use.jinja",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
]
LEFT = [
    ".gitattributes",
    "consolidated.safetensors",
    "modeling_own.py",
    "model-q4.gguf",
    "onnx/model.onnx",
    "original/model.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "training_args.bin",
]


def files(*names: str) -> list[RemoteFile]:
    return [RemoteFile(name, 10) for name in sorted(names)]


def taken(uri: str, *names: str) -> list[str]:
    source = parse_uri(uri, "dataset" if "datasets/" in uri or uri.startswith("https") else "model")
    return [file.name for file in select(source, files(*names))]


def test_of_a_model_only_what_is_read_and_never_run_is_taken() -> None:
    assert taken("hf://o/n", *TAKEN, *LEFT) == TAKEN


def test_shards_with_other_names_are_taken_where_there_is_an_index() -> None:
    names = ("config.json", "model.safetensors.index.json", "part-1.safetensors", "consolidated.safetensors")
    assert taken("hf://o/n", *names) == ["config.json", "model.safetensors.index.json", "part-1.safetensors"]


def test_a_single_file_beside_its_shards_is_not_fetched_twice() -> None:
    found = taken("hf://o/n", *TAKEN, "model.safetensors")
    assert "model.safetensors" not in found


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["model-q4.gguf", "README.md"], "as GGUF only (model-q4.gguf)"),
        (["config.json", "pytorch_model.bin"], "as pickles only (pytorch_model.bin), which can run code"),
        (["config.json", "onnx/model.onnx"], "as ONNX only"),
        (["config.json", "tf_model.h5"], "TensorFlow or Flax"),
        (["config.json", "weights.safetensors"], "under another name (weights.safetensors)"),
        (["model.safetensors"], "no config.json"),
        (["config.json"], "has no weights: config.json"),
        ([], "is empty"),
        (["model_index.json", "unet/model.safetensors"], "diffusers"),
        (["modules.json", "config.json", "model.safetensors"], "sentence-transformers"),
        (["adapter_model.bin"], "is an adapter, not a base"),
    ],
)
def test_what_is_no_base_is_refused_by_name(names: list[str], said: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        select(MODEL, files(*names))
    assert refused.value.reason is Terminal.FORMAT
    assert said in str(refused.value)
    assert refused.value.problems[0].fix


def test_an_adapter_given_as_a_base_names_its_base_and_the_field_that_takes_it() -> None:
    assert taken("hf://o/n", "adapter_config.json", "adapter_model.safetensors") == ["adapter_config.json"]
    with pytest.raises(
        SourceRefused, match=r"is an adapter of Qwen/Q, not a base; give hf://Qwen/Q here; .*adapter"
    ) as refused:
        check_configurations(MODEL, {"adapter_config.json": {"base_model_name_or_path": "Qwen/Q"}})
    assert "{field:model.adapter.model_id}" in refused.value.problems[0].fix


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(SourceRefused, match="auto_map"):
        check_configurations(MODEL, {name: {"auto_map": {"AutoModel": "own.Model"}}})
    check_configurations(MODEL, {name: {}})


DATA = (
    "README.md",
    "data/train-00000-of-00002.parquet",
    "data/train-00001-of-00002.parquet",
    "data/test-00000-of-00001.parquet",
)


def test_of_a_data_set_the_split_that_is_asked_for_is_taken() -> None:
    assert taken("hf://datasets/o/n?split=train", *DATA) == list(DATA[1:3])
    assert taken("hf://datasets/o/n?split=test", *DATA) == [DATA[3]]
    assert taken("hf://datasets/o/n/data/test-00000-of-00001.parquet", *DATA) == [DATA[3]]
    assert taken("hf://datasets/o/n", "README.md", "rows.jsonl") == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("uri", "reason", "said"),
    [
        ("hf://datasets/o/n", Terminal.FORMAT, "holds the splits"),
        ("hf://datasets/o/n?split=dev", Terminal.FORMAT, "has no split `dev`"),
        ("hf://datasets/o/n/rows.json", Terminal.NOT_FOUND, "has no file rows.json; it has README.md"),
    ],
)
def test_what_names_do_not_decide_is_refused_with_what_to_write(uri: str, reason: Terminal, said: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        taken(uri, *DATA)
    assert refused.value.reason is reason
    assert said in str(refused.value)
