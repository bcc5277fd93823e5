"""Tokenised rows for the trainers' tests, written as the data check writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter


def write_rows(
    path: Path, lengths: Sequence[int], *, vocab_size: int = 512, learned_share: float = 0.6, seed: int = 0
) -> TokenRows:
    """Rows of tokens that are rarer the higher they are (so there is something to learn), the end of each learned."""
    random = np.random.default_rng(seed)
    with TokenRowsWriter(path) as writer:
        for number, length in enumerate(lengths):
            ids = 4 + ((vocab_size - 4) * random.random(length) ** 8).astype(int)
            learned = np.arange(length) >= max(1, round(length * (1 - learned_share)))
            writer.append(ids.astype(np.int32), learned, row_number=number, text=f"row {number}")
    return TokenRows.open(path)


def as_version_1(folder: Path) -> dict[str, Any]:
    """Make `folder` what the version before wrote for the same rows, of one sequence each; returns its marker."""
    marker: dict[str, Any] = json.loads((folder / "rows.json").read_text())
    for name in ("prompts.bin", "row_starts.bin"):
        (folder / name).unlink()
        del marker["sizes"][name]
    (folder / "numbers.bin").rename(folder / "rewards.bin")
    marker["sizes"]["rewards.bin"] = marker["sizes"].pop("numbers.bin")
    (folder / "rows.json").write_text(json.dumps(marker | {"version": 1}))
    return marker
