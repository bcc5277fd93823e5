"""The held-out rows of a run: whole prompts, so that no held-out row has its prompt or its copy among the others.

Several outputs for one prompt, repeats and near copies are ordinary in real files; a split by rows would put them on
both sides, and the figures would show what the adapter remembers instead of what it has learned.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llm_tuning.data.calls import Tools, key_text, tools_key
from llm_tuning.data.messages import Message

MIN_ROWS_TO_SPLIT = 20
"""Below this no row is held out: training needs them more, and the figures would be noise."""

Indices = NDArray[np.int64]
PromptKeys = NDArray[np.uint64]


def prompt_key(
    messages: Sequence[Message] | None, text: str | None = None, *, tools: Tools | None = None, learn_from: int = 0
) -> int:
    """Hash a row's prompt to 64 bits: equal for rows of one prompt, whatever white space it is written with.

    The prompt is the conversation up to `learn_from` where the row names one, else up to its last turn, which is the
    answer; an empty system message is none. Its tools, and the calls and reasoning of earlier
    turns, are part of it. A row of plain `text` is its own prompt.
    """
    if messages is None:
        return _key(hashlib.blake2b(b"\x1d" + " ".join((text or "").split()).encode(), digest_size=8))
    *_, last = _prefix_keys(messages[: learn_from or -1], tools)
    return last


def _prefix_keys(messages: Sequence[Message], tools: Tools | None) -> Iterator[int]:
    """Yield the hash of no message, of the first one, of the first two, and so on."""
    digest = hashlib.blake2b(tools_key(tools).encode(), digest_size=8)
    yield _key(digest)
    for message in messages:
        content = " ".join(message["content"].split())
        if content or message["role"] != "system":
            digest.update(f"\x1e{message['role']}\x1f{content}{key_text(message)}".encode())
        yield _key(digest)


def _key(digest: hashlib.blake2b) -> int:
    return int.from_bytes(digest.digest(), "little")


class PromptGroups:
    """Collects the prompts of a data set row by row, in 8 bytes a row and 16 for each further answer of a conversation.

    A log that is exported after every turn has a conversation as several rows, each the beginning of the next. What the
    shorter one leaves open is answered within the longer one, so these rows stay together as those of one prompt do.
    """

    def __init__(self) -> None:
        self._prompts = array("Q")
        self._longer, self._asks = array("Q"), array("Q")

    def add(
        self,
        messages: Sequence[Message] | None,
        text: str | None = None,
        *,
        tools: Tools | None = None,
        learn_from: int = 0,
        not_learned: frozenset[int] = frozenset(),
    ) -> None:
        """Take in the next row; the arguments are those of `prompt_key`, and the answers that it does not learn."""
        if messages is None:
            self._prompts.append(prompt_key(None, text))
            return
        keys = list(_prefix_keys(messages[:-1], tools))  # the last turn, the longest most often, is in none
        key = keys[learn_from or -1]
        self._prompts.append(key)
        for at in range(learn_from, len(messages)):
            if messages[at]["role"] == "assistant" and at not in not_learned and keys[at] != key:
                self._longer.append(key)
                self._asks.append(keys[at])

    def __len__(self) -> int:
        return len(self._prompts)

    def count(self, first: int = 0) -> int:
        """Count the different prompts of the rows from `first` on, each for itself."""
        return len(np.unique(np.array(self._prompts[first:], dtype=np.uint64)))

    def keys(self) -> PromptKeys:
        """Return a key a row, of shape (rows,): equal for rows that must be on one side of a split."""
        prompts, longer, asks = (
            np.array(values, dtype=np.uint64) for values in (self._prompts, self._longer, self._asks)
        )
        known = np.unique(prompts)
        links = np.unique(np.stack([longer, asks])[:, np.isin(asks, known)], axis=1)
        leader: dict[int, int] = {}

        def find(key: int) -> int:
            while key in leader:
                key = leader[key]
            return key

        for one, other in links.T.tolist():
            low, high = sorted((find(one), find(other)))
            if low != high:
                leader[high] = low
        led = np.array([find(key) for key in known.tolist()], dtype=np.uint64) if leader else known
        return led[np.searchsorted(known, prompts)]


def split(
    prompts: PromptKeys, fraction: float, seed: int, *, good: NDArray[np.bool_] | None = None
) -> tuple[Indices, Indices]:
    """Return the indices (training, held out) of rows with these keys, in rising order; see `PromptGroups`.

    `fraction` of the rows, at least one, as whole prompts in an order that follows from `seed` and the prompts alone.
    Where every prompt has more rows than that, the one with the fewest is held out. Nothing is held out of less than
    20 rows, nor where all rows have one prompt. With `good`, which tells rows of two kinds apart, both sides have rows
    of both kinds where that takes no more than another choice of prompts, and two rows or more are to be held out.
    """
    everything = np.arange(len(prompts), dtype=np.int64)
    if len(prompts) < MIN_ROWS_TO_SPLIT or fraction <= 0:
        return everything, everything[:0]
    keys, group_of_row, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(keys) < 2:
        return everything, everything[:0]
    target = max(1, round(len(prompts) * fraction))
    chosen = _choose(keys, sizes, target, seed)
    if good is not None and target > 1:
        kinds = [np.bincount(group_of_row, weights=kind, minlength=len(keys)) > 0 for kind in (good, ~good)]
        _spread_kinds(chosen, np.argsort(_shuffled(keys, seed), kind="stable"), sizes, np.stack(kinds, axis=1))
    is_held_out = chosen[group_of_row]
    return everything[~is_held_out], everything[is_held_out]


def held_out_apart(prompts: PromptKeys, first: int) -> tuple[Indices, Indices]:
    """Return the indices (training, held out) where the rows from `first` on are there to evaluate on.

    Those whose prompt is among the training rows are in neither: their scores would show what the adapter remembers.
    """
    everything = np.arange(len(prompts), dtype=np.int64)
    return everything[:first], everything[first:][~np.isin(prompts[first:], prompts[:first])]


def _choose(keys: PromptKeys, sizes: NDArray[np.int64], target: int, seed: int) -> NDArray[np.bool_]:
    """Choose the prompts to hold out: in shuffled order each one that still fits into `target` rows, at least one."""
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


def _spread_kinds(
    chosen: NDArray[np.bool_], order: Indices, sizes: NDArray[np.int64], kinds: NDArray[np.bool_]
) -> None:
    """Exchange chosen prompts for others so that both sides have rows of both kinds, as far as one exchange each does.

    `kinds`, of shape (prompts, 2), says of which kinds the rows of a prompt are. Taken in is the first prompt in
    `order` with the kind that is missing, in place of the one nearest in size whose kinds are there without it.
    """
    for side, other in ((True, False), (False, True)):  # what the held-out rows lack, then what the training rows lack
        for kind in (0, 1):
            if kinds[chosen == side, kind].any():
                continue
            has = [group for group in order if chosen[group] == other and kinds[group, kind]]
            if len(has) < 2:
                continue  # the one prompt with such rows: it stays where it is
            taken = has[0]
            given = [group for group in order if chosen[group] == side and _goes_without(group, chosen == side, kinds)]
            if given:
                near = min(given, key=lambda group: abs(int(sizes[group]) - int(sizes[taken])))
                chosen[near] = other
            chosen[taken] = side


def _goes_without(group: np.int64, side: NDArray[np.bool_], kinds: NDArray[np.bool_]) -> bool:
    """Return whether a side of a split has every kind of rows that it has now when a prompt leaves it."""
    rest = side.copy()
    rest[group] = False
    return bool((kinds[rest].any(axis=0) >= kinds[side].any(axis=0)).all())


def _shuffled(keys: PromptKeys, seed: int) -> PromptKeys:
    """Return a number a prompt that `seed` decides, whatever the order of the rows (the finaliser of splitmix64)."""
    mixed = keys ^ np.random.default_rng(seed).integers(0, 1 << 63, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    shuffled: PromptKeys = mixed ^ (mixed >> np.uint64(31))
    return shuffled


def split_rows(n_rows: int, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Split row by row, for rows that were tokenised before prompts were kept, as their run was begun."""
    everything = np.arange(n_rows, dtype=np.int64)
    if n_rows < MIN_ROWS_TO_SPLIT or fraction <= 0:
        return everything, everything[:0]
    held_out = max(1, round(n_rows * fraction))
    shuffled = np.random.default_rng(seed).permutation(n_rows).astype(np.int64)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])
