"""A base model's folder is looked at before it is loaded; every fault is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from llm_tuning.models.base import check_writable, inspect_base, weight_hash
from llm_tuning.models.trainable import check_trainable, training_problems


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_a_whole_base_is_described(base: Path) -> None:
    found = inspect_base(base)
    assert (found.name, found.architecture, found.parameters) == ("base", "LlamaForCausalLM", 147776)
    assert found.has_fast_tokenizer


def _without(name: str) -> Callable[[Path], object]:
    return lambda base: (base / name).unlink()


def _pickled(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")


def _cut(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _remote_code(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))


def _missing_shard(base: Path) -> None:
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model-00001.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "want"),
    [
        (_without("config.json"), "has no config.json"),
        (_without("model.safetensors"), "has no weights"),
        (_without("tokenizer.json"), "has no tokenizer"),
        (_pickled, "has only pickled weights"),
        (_cut, "is not a whole safetensors file"),
        (_remote_code, "asks for code of its own"),
        (_missing_shard, "lacks weight files .* model-00001.safetensors"),
        (lambda base: (base / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_a_fault_is_named(base: Path, spoil: Callable[[Path], object], want: str) -> None:
    spoil(base)
    with pytest.raises(InputError, match=want):
        inspect_base(base)


def test_the_weight_hash_follows_the_weights_and_is_remembered(base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = weight_hash(inspect_base(base), cache)
    cache_text = cache.read_text()
    assert weight_hash(inspect_base(base), cache) == first
    assert cache.read_text() == cache_text
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    assert weight_hash(inspect_base(base), cache) != first


def test_a_damaged_hash_cache_is_made_again(base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hashes.json"
    first = weight_hash(inspect_base(base), cache)
    cache.write_text("{")
    assert weight_hash(inspect_base(base), cache) == first


def test_an_output_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir .*file/models: cannot be written \(Not a directory\)"):
        check_writable(tmp_path / "file" / "models")


def _config(base: Path, **values: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | values))


def _tensors(base: Path, **dtypes: str) -> None:
    """Put tensors of these types, of one row of four elements each, in place of the weights."""
    sizes = {"F8_E4M3": 1, "I32": 4, "U8": 1, "BF16": 2}
    header, at = {}, 0
    for name, dtype in dtypes.items():
        end = at + 4 * sizes[dtype]
        header[name] = {"dtype": dtype, "shape": [1, 4], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    (base / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))


QUANTISED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gptq": (lambda base: _config(base, quantization_config={"quant_method": "gptq", "bits": 4}), "gptq"),
    "awq": (lambda base: _config(base, quantization_config={"quant_method": "awq"}), "awq"),
    "bitsandbytes": (lambda base: _config(base, quantization_config={"load_in_4bit": True}), "bitsandbytes"),
    "fp8": (lambda base: _config(base, quantization_config={"quant_method": "fp8"}), "fp8"),
    "mxfp4": (lambda base: _config(base, quantization_config={"quant_method": "mxfp4"}), "mxfp4"),
    "compressed": (
        lambda base: _config(base, quantization_config={"quant_method": "compressed-tensors"}),
        "compressed-tensors",
    ),
    "an older name": (
        lambda base: _config(base, compression_config={"quant_method": "compressed-tensors"}),
        "compressed-tensors",
    ),
    "an unknown one": (lambda base: _config(base, quantization_config={"bits": 3}), r"\?"),
    "in the text part": (
        lambda base: _config(base, text_config={"quantization_config": {"quant_method": "awq"}}),
        "awq",
    ),
    "deeper": (
        lambda base: _config(base, thinker_config={"text_config": {"quantization_config": {"quant_method": "gptq"}}}),
        "gptq",
    ),
    "a file of old GPTQ": (lambda base: (base / "quantize_config.json").write_text('{"bits": 4}'), "gptq"),
    "a file of old AWQ": (lambda base: (base / "quant_config.json").write_text('{"w_bit": 4}'), "awq"),
    "a file of ModelOpt": (lambda base: (base / "hf_quant_config.json").write_text("{}"), "modelopt"),
    "fp8 weights without a word": (lambda base: _tensors(base, **{"a.weight": "F8_E4M3"}), "fp8"),
    "packed weights without a word": (lambda base: _tensors(base, **{"a.qweight": "I32"}), "a.qweight is I32"),
    "bytes for weights": (lambda base: _tensors(base, **{"a.weight": "U8"}), "u8"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_quantised_base_is_not_trained_and_may_be_served(base: Path, kind: str) -> None:
    spoil, method = QUANTISED[kind]
    spoil(base)
    found = inspect_base(base)  # what serving asks for
    with pytest.raises(InputError, match=rf"^model .*: is quantised \({method}\).*; give the unquantised weights"):
        check_trainable(found)


@pytest.mark.parametrize("value", [None, {}])
def test_a_base_that_says_it_is_not_quantised_is_trained(base: Path, value: object) -> None:
    _config(base, quantization_config=value)
    check_trainable(inspect_base(base))


def test_a_config_with_another_vocabulary_than_the_weights_is_refused(base: Path) -> None:
    _config(base, vocab_size=600)
    with pytest.raises(InputError, match=r"config\.json: says vocab_size 600, but the embeddings have 512 rows"):
        check_trainable(inspect_base(base))


def test_a_tokenizer_alone_is_no_base_to_complain_about(base: Path) -> None:
    """Rows are checked with it; a run would refuse it."""
    (base / "model.safetensors").unlink()
    assert training_problems(base) == []
    _config(base, quantization_config={"quant_method": "awq"})
    (problem,) = training_problems(base)
    assert "is quantised (awq)" in problem.rule
