"""The held-out rows of a run: whole prompts, so that no held-out row has its prompt or its copy among the others.

Several outputs for one prompt, repeats and near copies are ordinary in real files; a split by rows would put them on
both sides, and the figures would show what the adapter remembers instead of what it has learned.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_tuning.data.messages import Message

MIN_ROWS_TO_SPLIT = 20
"""Below this no row is held out: training needs them more, and the figures would be noise."""

Indices = NDArray[np.int64]
PromptKeys = NDArray[np.uint64]


def prompt_key(messages: Sequence[Message] | None, text: str | None = None, *, learn_from: int = 0) -> int:
    """A 64-bit hash of what a row asks: equal for rows of one prompt, whatever white space it is written with.

    The prompt is the conversation up to `learn_from` where the row names one, else up to its last turn, which is the
    answer; an empty system message is none. A row of plain `text` is its own prompt.
    """
    digest = hashlib.blake2b(digest_size=8)
    if messages is None:
        digest.update(b"\x1d" + " ".join((text or "").split()).encode())
    else:
        for message in messages[: learn_from or -1]:
            content = " ".join(message["content"].split())
            if content or message["role"] != "system":
                digest.update(f"\x1e{message['role']}\x1f{content}".encode())
    return int.from_bytes(digest.digest(), "little")


def split(prompts: PromptKeys, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices (training, held out) of rows with these prompts, each in rising order; see `prompt_key`.

    `fraction` of the rows, at least one, as whole prompts in an order that follows from `seed` and the prompts alone.
    Where every prompt has more rows than that, the one with the fewest is held out. Nothing is held out of less than
    20 rows, nor where all rows have one prompt.
    """
    everything = np.arange(len(prompts), dtype=np.int64)
    if len(prompts) < MIN_ROWS_TO_SPLIT or fraction <= 0:
        return everything, everything[:0]
    keys, group_of_row, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(keys) < 2:
        return everything, everything[:0]
    chosen = _choose(keys, sizes, max(1, round(len(prompts) * fraction)), seed)
    is_held_out = chosen[group_of_row]
    return everything[~is_held_out], everything[is_held_out]


def _choose(keys: PromptKeys, sizes: NDArray[np.int64], target: int, seed: int) -> NDArray[np.bool_]:
    """Which prompts to hold out: in shuffled order each one that still fits into `target` rows, at least one."""
    order = np.argsort(_shuffled(keys, seed), kind="stable")
    chosen = np.zeros(len(keys), dtype=np.bool_)
    room = target
    for group in order:
        if sizes[group] <= room:
            chosen[group] = True
            room -= int(sizes[group])
            if room == 0:
                break
    if room == target:
        chosen[order[np.argmin(sizes[order])]] = True
    return chosen


def _shuffled(keys: PromptKeys, seed: int) -> PromptKeys:
    """A number of every prompt that `seed` decides, whatever the order of the rows (the finaliser of splitmix64)."""
    mixed = keys ^ np.random.default_rng(seed).integers(0, 1 << 63, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    shuffled: PromptKeys = mixed ^ (mixed >> np.uint64(31))
    return shuffled


def split_rows(n_rows: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """As `split` for rows that were tokenised before prompts were kept: row by row, as their run was begun."""
    everything = np.arange(n_rows, dtype=np.int64)
    if n_rows < MIN_ROWS_TO_SPLIT or fraction <= 0:
        return everything, everything[:0]
    held_out = max(1, round(n_rows * fraction))
    shuffled = np.random.default_rng(seed).permutation(n_rows).astype(np.int64)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])
