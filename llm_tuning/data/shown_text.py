"""A row of plain text as it is shown: with the tokens that stand around it in training, and what is learned marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers import Encoding

Span = tuple[int, int]


def show_text(
    text: str, encoding: Encoding, ids: Sequence[int], learned: Sequence[bool], text_of: Callable[[int], str]
) -> tuple[str, list[Span]]:
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
    return whole, [(starts, ends)] if any(learned) else []
