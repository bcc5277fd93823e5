"""A base model's folder is looked at before it is loaded; every fault is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from llm_tuning.models.base import check_writable, inspect_base, weight_hash


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
