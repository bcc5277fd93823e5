"""The script that makes the demo's base model, at a size that takes seconds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.models.base import inspect_base


def _tiny(**changes: Any) -> Any:
    from make_base_model import Recipe

    tiny = Recipe(vocab_size=512, hidden_size=64, layers=1, steps=3, chats=4, pages=1, page_tokens=32)
    return replace(tiny, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from make_base_model import make_base_model

    folder = tmp_path_factory.mktemp("demo") / "tiny-python"
    assert make_base_model(folder, _tiny())
    return folder


def _hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_folder_is_a_model_that_transformers_and_the_platform_read(made: Path) -> None:
    from make_base_model import chat_text
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    model = AutoModelForCausalLM.from_pretrained(made)
    messages = [{"role": "user", "content": "What does `len` do?"}, {"role": "assistant", "content": "Count."}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == chat_text("What does `len` do?", "Count.")
    assert tokenizer.decode(model.config.eos_token_id) == tokenizer.eos_token == "<|im_end|>"
    assert model.config.head_dim == 32
    assert str(model.dtype) == "torch.float32"
    assert inspect_base(made).name == "tiny-python"


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_gives_others(made: Path, tmp_path: Path) -> None:
    from make_base_model import make_base_model

    make_base_model(tmp_path / "again", _tiny())
    make_base_model(tmp_path / "other", _tiny(seed=1))
    assert _hash(tmp_path / "again") == _hash(made)
    assert _hash(tmp_path / "other") != _hash(made)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()


def test_a_whole_model_of_the_same_recipe_is_kept_and_any_other_is_made_anew(made: Path, tmp_path: Path) -> None:
    from make_base_model import MARKER, make_base_model

    before = (made / "model.safetensors").stat().st_mtime_ns
    assert not make_base_model(made, _tiny())
    assert (made / "model.safetensors").stat().st_mtime_ns == before

    folder = tmp_path / "model"
    assert make_base_model(folder, _tiny())
    assert make_base_model(folder, _tiny(steps=2))
    (folder / MARKER).unlink()  # as after a copy that was cut off
    assert make_base_model(folder, _tiny(steps=2))


def test_training_lowers_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    from make_base_model import make_base_model

    make_base_model(tmp_path / "model", _tiny(steps=30, hidden_size=96, chats=8))
    losses = [float(text) for text in re.findall(r"loss on chats ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 1
