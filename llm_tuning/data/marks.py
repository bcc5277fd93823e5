"""Rendered texts as token ids with the loss mask, as the server sees the prompts and has to make the answers.

A server tokenises the prompt of an answer alone. Where that gives other tokens than the same characters have in the
whole text, the last answer is encoded apart from its prompt, and an earlier one is learned in a text of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from llm_tuning.data.answers import Asked
from llm_tuning.data.encoding import Encoder, Piece
from llm_tuning.data.spans import Rendered, Span


@dataclass(slots=True)
class Marked:
    """A text as tokens, with the loss mask."""

    rendered: Rendered
    pieces: Sequence[Piece]
    """The text, or its prompt and its answer apart."""
    ids: list[int]
    learned: NDArray[np.bool_]
    first: list[int] = field(default_factory=list)
    """The first token of each answer."""
    stop_at: int = -1
    """The token that ends the last answer, -1 where none does."""
    merges: bool = False
    """The prompt of the last answer has other tokens alone, and could not be encoded apart."""

    @property
    def spans(self) -> list[Span]:
        """The characters of the tokens in the loss."""
        spans = [piece.span(token) for piece in self.pieces for token in range(len(piece.ids))]
        return [spans[index] for index in np.flatnonzero(self.learned).tolist()]

    def end_of(self, token: int) -> int:
        """Return the character behind a token."""
        for piece in self.pieces:
            if token < len(piece.ids):
                return piece.span(token)[1]
            token -= len(piece.ids)
        return len(self.rendered.text)


class LossMarker:
    """Marks what is in the loss, for a base whose generation stops at the tokens `stop_ids`."""

    def __init__(self, encoder: Encoder, stop_ids: Collection[int], sample: Asked | None) -> None:
        """Take an answer that the template was asked for: it may run together with the prompt, whatever it is."""
        self._encoder, self._stop_ids = encoder, stop_ids
        self.always_apart = sample is not None and self._runs_together(sample)
        """Prompt and answer are encoded apart in every text."""

    def mark(self, rendered: Rendered, encoding: Encoding | None = None) -> list[Marked]:
        """Return the text as tokens, after those of answers that need a text of their own; `encoding` is its own."""
        last = rendered.turns[-1]
        pieces = self._pieces(rendered, last.start, encoding)
        merges = pieces is None
        if pieces is None:
            pieces = (Piece(self._encoder.encode([rendered.text])[0], rendered.text),)
        ids = [number for piece in pieces for number in piece.ids] if len(pieces) > 1 else pieces[0].ids
        marked = Marked(rendered, pieces, ids, np.zeros(len(ids), dtype=np.bool_), merges=merges)
        own: list[Marked] = []
        kept = []
        for turn in rendered.turns[:-1]:
            first, after, _ = self._tokens_of(pieces[0], turn.start, turn.end)
            if self._encoder.merges(pieces[0], first, rendered.text[: turn.start]):
                own += self.mark(rendered.alone(turn))
                continue
            kept.append(turn)
            marked.first.append(first)
            marked.learned[first:after] = True
        if own:
            marked.rendered = Rendered(rendered.text, (*kept, last), rendered.facts)
        before = sum(len(piece.ids) for piece in pieces[:-1])
        first, after, stop_at = self._tokens_of(pieces[-1], last.start, last.end)
        marked.first.append(before + first)
        marked.learned[before + first : before + after] = True
        marked.learned[:1] = False
        marked.stop_at = before + stop_at if stop_at >= 0 else -1
        return [*own, marked]

    def _pieces(self, rendered: Rendered, start: int, encoding: Encoding | None) -> Sequence[Piece] | None:
        """Return the text as one piece where its prompt has the same tokens alone, else as two; None if that fails."""
        if not self.always_apart:
            whole = Piece(encoding or self._encoder.encode([rendered.text])[0], rendered.text)
            first = whole.first_token_from(start, len(rendered.text))
            if not self._encoder.merges(whole, first, rendered.text[:start]):
                return (whole,)
        return self._encoder.apart(rendered.text, start)

    def _tokens_of(self, piece: Piece, start: int, end: int) -> tuple[int, int, int]:
        """Return the first token of an answer, the one after its last in the loss, and its end token (-1: none)."""
        first = piece.first_token_from(start, len(piece.text))
        after = piece.first_token_from(end, len(piece.text))
        stop_at = self._closing_stop(piece, first, after)
        return first, after if stop_at < 0 else stop_at + 1, stop_at

    def _closing_stop(self, piece: Piece, first: int, after: int) -> int:
        """Find the stop token that ends a turn, -1 if none does: what the template writes behind it is not generated.

        The tokens of the turn are those from `first` to before `after`.
        """
        closing = -1
        for index in range(after - 1, first - 1, -1):
            if piece.ids[index] in self._stop_ids:
                closing = index  # and perhaps one before it: some templates end a turn, then the conversation
                continue
            if piece.source(index).strip():
                break
        return closing

    def _runs_together(self, sample: Asked) -> bool:
        text = sample.prompt + sample.answer
        piece = Piece(self._encoder.encode([text])[0], text)
        return self._encoder.merges(piece, piece.first_token_from(len(sample.prompt), len(text)), sample.prompt)
