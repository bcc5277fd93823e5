"""Text to token ids as a server does it: prompts whole, with the positions of each token in the text.

A prompt and its answer are one text in training and two at the server, which tokenises the prompt alone and generates
from there. Where a token would begin in the prompt and end in the answer, they are tokenised apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Encoding, Tokenizer

from llm_tuning.errors import InputError, Problem

_CACHED_TAIL_CHARACTERS = 256
_CACHED_TAILS = 10_000
_ANCHORS = ("\n", "a", ".", ":", "]", ">", "0")
"""Texts to tokenise an answer behind where a tokenizer begins every text with a blank."""


@dataclass(slots=True)
class Piece:
    """A text, or the part of one from `at` on, as tokens."""

    encoding: Encoding
    text: str
    at: int = 0
    """Where the piece begins in the whole text."""
    skipped: int = 0
    """Tokens at the start of the encoding that do not count: those of an anchor."""
    ids: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.ids = self.encoding.ids[self.skipped :]  # the library builds the list anew each time

    def first_token_from(self, character: int, end: int) -> int:
        """Return the index of the first token that begins at `character` of the whole text or later.

        The number of tokens where there is none before `end`.
        """
        shift = self._shift
        for position in range(character - shift, end - shift):
            token = self.encoding.char_to_token(position)
            if token is None:
                continue  # the tokenizer drops this character
            while token < len(self.encoding) and self._start(token) < character - shift:
                token += 1
            return token - self.skipped
        return len(self.ids)

    def span(self, token: int) -> tuple[int, int]:
        """Return the characters of the whole text that a token stands for."""
        start, end = self.encoding.token_to_chars(token + self.skipped) or (self._shift * -1, self._shift * -1)
        return start + self._shift, end + self._shift

    def source(self, token: int) -> str:
        """Return the text that a token stands for."""
        start, end = self.span(token)
        return self.text[max(0, start) : max(0, end)]

    @property
    def _shift(self) -> int:
        """Characters of the whole text before those that were encoded, less the characters of an anchor."""
        return self.at - (self._start(self.skipped) if self.skipped else 0)

    def _start(self, token: int) -> int:
        span = self.encoding.token_to_chars(token) if token < len(self.encoding) else None
        return span[0] if span is not None else 0


class Encoder:
    """A tokenizer without its truncation, padding and post-processor."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.added = {number: token.content for number, token in added.items()}
        self.special = {number: token.content for number, token in added.items() if token.special}
        self._tails: dict[str, list[int]] = {}
        first = tokenizer.encode("a", add_special_tokens=False).tokens[:1]
        self._begins_with_blank = bool(first) and first[0][:1] in ("\u2581", "\u0120")

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts that hold all their special tokens; raises InputError where the tokenizer cannot."""
        # Post-processors of byte-level tokenizers cut blanks out of the offsets, and then leading blanks of an
        # answer would belong to no token. Without special tokens a post-processor does nothing else.
        tokenizer = self.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        processor = tokenizer.post_processor
        tokenizer.post_processor = None  # type: ignore[assignment]
        try:
            return tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exception
            rule = f"cannot encode every text ({str(error)[:200]})"
            raise InputError(Problem("tokenizer.json of the base", rule, "give it an unknown token")) from None
        finally:
            if processor is not None:
                tokenizer.post_processor = processor

    def text_of(self, number: int) -> str:
        """Return the text of one token."""
        return self.tokenizer.decode([number], skip_special_tokens=False)

    def merges(self, piece: Piece, tokens: int, prompt: str) -> bool:
        """Return whether the `prompt` alone is tokenised differently than in the first so many `tokens` of `piece`.

        A special token splits the text for certain, so only the part from the last one on is encoded again; with most
        templates that is the short head of the assistant's turn, the same in every row.
        """
        ids = piece.ids[:tokens]
        start = tokens
        while start > 0:
            start -= 1
            content = self.special.get(ids[start])
            if content is not None and piece.source(start).strip() == content.strip():
                break  # written in the text, not an unknown-token standing for something else
        tail = prompt[piece.span(start)[0] :] if start > 0 else prompt
        alone = self._tails.get(tail)
        if alone is None:
            alone = self.tokenizer.encode(tail, add_special_tokens=False).ids
            if len(tail) <= _CACHED_TAIL_CHARACTERS and len(self._tails) < _CACHED_TAILS:
                self._tails[tail] = alone
        return alone != ids[start:]

    def apart(self, text: str, at: int) -> tuple[Piece, Piece] | None:
        """Encode `text` in two, before and from `at` on; None where that cannot be done without a blank between."""
        if not self._begins_with_blank:
            prompt, answer = self.encode([text[:at], text[at:]])
            return Piece(prompt, text), Piece(answer, text, at)
        (prompt,) = self.encode([text[:at]])
        for anchor in _ANCHORS:
            (encoding,) = self.encode([anchor + text[at:]])
            spans = [encoding.token_to_chars(token) or (0, 0) for token in range(len(encoding))]
            first = next((token for token, span in enumerate(spans) if span[0] >= len(anchor)), len(spans))
            if 0 < first < len(spans) and spans[first][0] == spans[first - 1][1] == len(anchor):
                return Piece(prompt, text), Piece(encoding, text, at, skipped=first)
        return None
