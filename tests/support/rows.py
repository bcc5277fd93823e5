"""Tokenised rows for the trainers' tests, written as the data check writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_tuning.data.token_rows import TokenRows, TokenRowsWriter


def write_rows(
    path: Path, lengths: Sequence[int], *, vocab_size: int = 512, learned_share: float = 0.6, seed: int = 0
) -> TokenRows:
    """Rows of random tokens with some order in them; of each the last `learned_share` is learned."""
    random = np.random.default_rng(seed)
    with TokenRowsWriter(path) as writer:
        for number, length in enumerate(lengths):
            ids = random.integers(4, vocab_size, length)
            ids[1::2] = (ids[::2][: len(ids[1::2])] * 7 + 3) % (vocab_size - 4) + 4  # every second token follows
            learned = np.arange(length) >= max(1, round(length * (1 - learned_share)))
            writer.append(ids.astype(np.int32), learned, row_number=number, text=f"row {number}")
    return TokenRows.open(path)
