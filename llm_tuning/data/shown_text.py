"""Texts as they are shown: up to where they are cut off, with what is learned marked.

Plain text has the tokens around it that it has in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenizers import Encoding

Span = tuple[int, int]


@dataclass(frozen=True)
class Shown:
    """A text that is trained on, and the characters of it that are in the loss."""

    text: str
    spans: list[Span]
    lost: int = 0
    """Tokens that are cut off behind it."""

    def up_to(self, end: int) -> Shown:
        """Return the text before the character `end`."""
        if end >= len(self.text):
            return self
        return Shown(self.text[:end], [(start, min(stop, end)) for start, stop in self.spans if start < end], self.lost)


def show_text(
    text: str,
    encoding: Encoding,
    ids: Sequence[int],
    learned: Sequence[bool],
    text_of: Callable[[int], str],
    *,
    max_length: int | None = None,
) -> Shown:
    """Return the text with what the tokenizer and the training set around it, and the span of characters in the loss.

    `ids` are those of `encoding` with what is set behind them, `learned` says of each whether it is in the loss: all
    are, from the second on, but for white space behind an end token.
    """
    count, added = len(encoding.ids), encoding.special_tokens_mask
    own = [index for index in range(count) if not added[index]] or [count]
    before = [text_of(number) for number in ids[: own[0]]]
    behind = [text_of(number) for number in ids[own[-1] + 1 :]]
    whole = "".join((*before, text, *behind))
    head = sum(map(len, before))
    starts = len(before[0]) if before else encoding.offsets[0][1] if count else 0
    last = max((index for index, is_learned in enumerate(learned) if is_learned), default=0)
    ends = head + encoding.offsets[last][1] if own[0] <= last < own[-1] else len(whole)
    lost = max(0, len(ids) - max_length) if max_length else 0
    shown = Shown(whole, [(starts, ends)] if any(learned) else [], lost)
    kept = len(ids) - lost - 1
    return shown.up_to(head + encoding.offsets[kept][1]) if lost and own[0] <= kept < count else shown
