"""The cached reference: what its key is over, and that a damaged file is never believed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter
from llm_tuning.trainers.reference_cache import read_reference, reference_key, write_reference

REFERENCE = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)


def _rows(path: Path, rows: list[tuple[list[int], int]]) -> TokenRows:
    with TokenRowsWriter(path) as writer:
        for number, (ids, context) in enumerate(rows):
            learned = np.arange(len(ids)) >= context
            writer.append(np.array(ids, dtype=np.int32), learned, row_number=number, number=float(number), text="")
    return TokenRows.open(path)


def _key(rows: TokenRows, at: tuple[int, ...] = (0, 1, 2), **changes: Any) -> str:
    given: dict[str, Any] = {
        "base_weight_hash": "base",
        "start_adapter_hash": "",
        "start_adapter_scale": 0.0,
        "quantization": "none",
        "dtype": torch.float32,
        "device": "cuda:0",
        "kind": "logprobs",
        "sequences": [sequence for index in at for sequence in rows[index].sequences],
    }
    return reference_key(**(given | changes))


DATA = [([1, 2, 3, 4], 2), ([5, 6], 1), ([7, 8, 9], 1)]


def test_the_key_is_over_the_start_policy_the_tokens_and_the_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gpus = {"cuda:0": "NVIDIA H100", "cuda:1": "NVIDIA H100", "cuda:2": "NVIDIA A100"}
    monkeypatch.setattr(torch.cuda, "get_device_name", gpus.__getitem__)
    rows = _rows(tmp_path / "rows", DATA)
    same = _key(rows)
    assert _key(_rows(tmp_path / "copy", DATA), device="cuda:1") == same, "which GPU does not count"
    changed = {
        "another base": _key(rows, base_weight_hash="other"),
        "a start adapter": _key(rows, start_adapter_hash="adapter"),
        "its scale": _key(rows, start_adapter_hash="adapter", start_adapter_scale=2.0),
        "quantization": _key(rows, quantization="4bit"),
        "dtype": _key(rows, dtype=torch.bfloat16),
        "device": _key(rows, device="cpu"),
        "GPU of another kind": _key(rows, device="cuda:2"),
        "rows": _key(rows, (0, 1)),
        "their order": _key(rows, (0, 2, 1)),
        "what of them": _key(rows, kind="states"),
        "a token": _key(_rows(tmp_path / "a", [([1, 2, 3, 5], 2), *DATA[1:]])),
        "what is learned": _key(_rows(tmp_path / "b", [([1, 2, 3, 4], 1), *DATA[1:]])),
        "where rows end": _key(_rows(tmp_path / "c", [([1, 2, 3], 2), ([4, 5, 6], 1), DATA[2]])),
    }
    assert len({same, *changed.values()}) == 1 + len(changed)


def test_what_was_written_is_read_bit_for_bit(tmp_path: Path):
    path = tmp_path / "reference" / "key.safetensors"
    assert read_reference(path, size=3) is None
    write_reference(path, REFERENCE)
    found = read_reference(path, size=3)
    assert found is not None
    assert torch.equal(found, REFERENCE)
    assert found.dtype == torch.bfloat16
    assert [p.name for p in path.parent.iterdir()] == ["key.safetensors"], "nothing temporary is left"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_rows(path: Path) -> None:
    write_reference(path, torch.zeros(4))


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _empty, _other_rows], ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_reported_and_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any):
    path = tmp_path / "key.safetensors"
    write_reference(path, REFERENCE)
    damage(path)
    with caplog.at_level(logging.WARNING):
        assert read_reference(path, size=3) is None
    assert "the start policy is scored again" in caplog.text


def test_a_cache_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "reference").write_text("a file where the folder should be")
    write_reference(tmp_path / "reference" / "key.safetensors", REFERENCE)
    assert "could not be written" in caplog.text
