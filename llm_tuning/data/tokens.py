"""Examples to token ids and loss masks, by the `tokenizers` library and without transformers.

A conversation is rendered whole and tokenised once, as the server and `apply_chat_template` do, and the
characters of the loss are mapped to tokens by offsets. A token that begins in the prompt is never in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from llm_tuning.core.files import check_regular
from llm_tuning.data.chat import ChatTemplate, load_chat_template, read_object
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.spans import Rendered, Span, render_conversation
from llm_tuning.errors import InputError, Problem

TOKENIZER_BYTES = 2**28
"""The largest tokenizer.json that is read: the largest of the known ones have 40 MB."""
_FEWEST_TOKENS = 2
"""Of a row: the first token has nothing before it to be predicted from."""
_CACHED_TAIL_CHARACTERS = 256
_CACHED_TAILS = 10_000


@dataclass(frozen=True, slots=True)
class TokenisedSequence:
    """One sequence as the model sees it, cut to the maximum length; arrays of shape (tokens,)."""

    input_ids: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Loss mask: whether each token is a target of the loss; the first never is."""
    full_length: int
    """Tokens before the cut."""
    learns_end: bool
    """The last token in the loss is one at which generation stops."""
    boundary_merge: bool = False
    """The prompt alone has other tokens than the same text inside the whole row."""
    rewritten: bool = False
    prompt_differs: bool = False


@dataclass(frozen=True, slots=True)
class TokenisedRow:
    """The sequences of one row, in the order of its Example."""

    sequences: tuple[TokenisedSequence, ...]


class RowTokenizer:
    """The tokenizer, chat template and stop tokens of one base."""

    def __init__(
        self, encoder: Tokenizer, template: ChatTemplate, *, stop_ids: Sequence[int], embeddings: int | None = None
    ) -> None:
        """Use `encoder` as it is, except for truncation and padding, which are off while rows are encoded.

        `embeddings`: how many tokens the base has embeddings for; a row with another one is a fault.
        """
        self.template = template
        self._encoder = encoder
        self._stop_ids = frozenset(stop_ids)
        eos = template.special_tokens.get("eos_token")
        self._eos_id = encoder.token_to_id(eos) if eos else None
        if self._eos_id is not None:
            self._stop_ids |= {self._eos_id}
        added = encoder.get_added_tokens_decoder()
        self._embeddings = embeddings
        self._added_tokens = {number: token.content for number, token in added.items()}
        self._special_tokens = {number: token.content for number, token in added.items() if token.special}
        self._tails: dict[str, list[int]] = {}

    @classmethod
    def load(cls, folder: Path, encoder: Tokenizer | None = None) -> RowTokenizer | None:
        """Load the tokenizer of the base in `folder`; None if it has no tokenizer.json and no `encoder` is given.

        Raises InputError if a file in the folder is unusable.
        """
        template = load_chat_template(folder)
        if encoder is None:
            path = folder / "tokenizer.json"
            if not path.exists():
                return None
            try:
                check_regular(path, most=TOKENIZER_BYTES)
                encoder = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises bare Exception
                raise InputError(
                    Problem(str(path), f"is not a tokenizer ({str(error)[:200]})", "copy the base model again")
                ) from None
        return cls(encoder, template, stop_ids=_stop_ids(folder), embeddings=_embeddings(folder))

    @property
    def stop_tokens(self) -> list[str]:
        """The tokens at which generation stops."""
        return [self._encoder.id_to_token(number) or str(number) for number in sorted(self._stop_ids)]

    def tokenise(self, examples: Sequence[Example], *, max_length: int) -> list[TokenisedRow | RowFault]:
        """Tokenise rows of one kind (all conversations or all text), in order; a row that cannot be used is a fault."""
        self._encoder.no_truncation()
        self._encoder.no_padding()
        conversations = [conversation for example in examples for conversation in example.sequences]
        if conversations and conversations[0].messages is None:
            found = self._tokenise_texts([conversation.text or "" for conversation in conversations], max_length)
        else:
            found = self._tokenise_conversations(conversations, max_length)
        rest = iter(found)
        return [self._row([next(rest) for _ in example.sequences], max_length) for example in examples]

    def learned_characters(self, rendered: Rendered) -> list[Span]:
        """Return the character spans of the tokens in the loss of a rendered conversation."""
        encoding = self._encode([rendered.text])[0]
        learned, _, _ = self._learned_tokens(rendered, encoding)
        return [encoding.token_to_chars(int(index)) or (0, 0) for index in np.flatnonzero(learned)]

    def _learned_tokens(self, rendered: Rendered, encoding: Encoding) -> tuple[NDArray[np.bool_], int, bool]:
        """Return the loss mask of an encoded conversation, its last stop token (-1: none) and whether tokens merge."""
        ids = encoding.ids
        learned = np.zeros(len(ids), dtype=np.bool_)
        stop_at, merges = -1, False
        for start, end in rendered.spans:
            first = _first_token_from(encoding, start, len(rendered.text))
            after = _first_token_from(encoding, end, len(rendered.text))
            stop_at = self._closing_stop(ids[first:after], encoding, first, rendered.text[:end])
            learned[first : after if stop_at < 0 else stop_at + 1] = True
            merges = merges or self._prompt_merges(ids[:first], encoding, rendered.text[:start])
        learned[:1] = False
        return learned, stop_at, merges

    def _tokenise_texts(self, texts: list[str], max_length: int) -> list[TokenisedSequence | RowFault]:
        rows: list[TokenisedSequence | RowFault] = []
        for encoding in self._encoder.encode_batch_fast(texts, add_special_tokens=True):
            ids = encoding.ids
            if self._eos_id is not None and ids[-1:] != [self._eos_id]:
                ids.append(self._eos_id)
            learned = np.ones(min(len(ids), max_length), dtype=np.bool_)
            learned[:1] = False
            ends = self._eos_id is not None and len(ids) <= max_length
            rows.append(TokenisedSequence(np.array(ids[:max_length], dtype=np.int32), learned, len(ids), ends))
        return rows

    def _tokenise_conversations(
        self, conversations: Sequence[Conversation], max_length: int
    ) -> list[TokenisedSequence | RowFault]:
        rendered: list[Rendered | RowFault] = []
        for conversation in conversations:
            try:
                rendered.append(render_conversation(self.template, conversation))
            except RowFault as fault:
                rendered.append(fault)
        encodings = iter(self._encode([row.text for row in rendered if isinstance(row, Rendered)]))
        return [
            row if isinstance(row, RowFault) else self._conversation_sequence(row, next(encodings), max_length)
            for row in rendered
        ]

    def _conversation_sequence(self, rendered: Rendered, encoding: Encoding, max_length: int) -> TokenisedSequence:
        learned, stop_at, merges = self._learned_tokens(rendered, encoding)
        ids = np.array(encoding.ids, dtype=np.int32)
        return TokenisedSequence(
            ids[:max_length],
            learned[:max_length],
            len(ids),
            learns_end=0 <= stop_at < max_length,
            boundary_merge=merges,
            rewritten=rendered.rewritten,
            prompt_differs=rendered.prompt_differs,
        )

    def _row(self, parts: Sequence[TokenisedSequence | RowFault], max_length: int) -> TokenisedRow | RowFault:
        """Build the row of these sequences; the first fault among them is the row's."""
        sequences: list[TokenisedSequence] = []
        for part in parts:
            fault = part if isinstance(part, RowFault) else self._fault_of(part, max_length)
            if fault is not None:
                return fault
            assert isinstance(part, TokenisedSequence)
            sequences.append(part)
        return TokenisedRow(tuple(sequences))

    def _fault_of(self, sequence: TokenisedSequence, max_length: int) -> RowFault | None:
        """Return why the model cannot learn from `sequence`, None if it can."""
        ids = sequence.input_ids
        if self._embeddings is not None and len(ids) and ids.max() >= self._embeddings:
            return self._without_embedding(int(ids[ids >= self._embeddings][0]))
        if sequence.learned.any():
            return None
        if sequence.full_length > max_length:
            limit = f"{{field:training.max_length}} ({max_length} tokens)"
            rule = f"nothing is left to learn: the answer starts after {limit}"
            return RowFault(Reason.NOTHING_TO_LEARN, rule, "raise {field:training.max_length} or shorten the prompt")
        if sequence.full_length < _FEWEST_TOKENS:
            cause = f"it has {sequence.full_length} of the {_FEWEST_TOKENS} tokens needed (the first is only context)"
        else:
            cause = "the answer has no token of its own"
        rule = f"no token would be trained on: {cause}"
        return RowFault(Reason.NOTHING_TO_LEARN, rule, "give more text or remove the row")

    def _without_embedding(self, number: int) -> RowFault:
        added = self._added_tokens.get(number)  # any other token is a piece of the row's text
        token = f"token {added} ({number})" if added is not None else f"token {number}"
        rule = f"has {token}, and the base has {self._embeddings:,} embeddings: 0 to {(self._embeddings or 1) - 1}"
        fix = "resize_token_embeddings() of the base and save it with its tokenizer, or use the tokenizer it came with"
        return RowFault(Reason.TOKEN_WITHOUT_EMBEDDING, rule, fix)

    def _encode(self, texts: list[str]) -> list[Encoding]:
        # Post-processors of byte-level tokenizers cut blanks out of the offsets, and then leading blanks of an
        # answer would belong to no token. Without special tokens a post-processor does nothing else.
        processor = self._encoder.post_processor
        self._encoder.post_processor = None  # type: ignore[assignment]
        try:
            return self._encoder.encode_batch(texts, add_special_tokens=False)
        finally:
            if processor is not None:
                self._encoder.post_processor = processor

    def _closing_stop(self, turn: list[int], encoding: Encoding, first: int, text: str) -> int:
        """Find the stop token that ends a turn, -1 if none does: what the template writes behind it is never generated.

        `turn` holds the ids of the turn, `first` is the index of its first token, `text` ends with the turn.
        """
        closing = -1
        for index in range(first + len(turn) - 1, first - 1, -1):
            if turn[index - first] in self._stop_ids:
                closing = index  # and perhaps one before it: some templates end a turn, then the conversation
                continue
            if _source(encoding, index, text).strip():
                break
        return closing

    def _prompt_merges(self, prompt_ids: list[int], encoding: Encoding, prompt: str) -> bool:
        """Return whether the prompt alone is tokenised differently than at the start of the whole row.

        A special token splits the text for certain, so only the part from the last one on is encoded again; with most
        templates that is the short head of the assistant's turn, the same in every row.
        """
        start = len(prompt_ids)
        while start > 0:
            start -= 1
            content = self._special_tokens.get(prompt_ids[start])
            if content is not None and _source(encoding, start, prompt).strip() == content.strip():
                break  # written in the text, not an unknown-token standing for something else
        tail = prompt[_start(encoding, start) :] if start > 0 else prompt
        ids = self._tails.get(tail)
        if ids is None:
            ids = self._encoder.encode(tail, add_special_tokens=False).ids
            if len(tail) <= _CACHED_TAIL_CHARACTERS and len(self._tails) < _CACHED_TAILS:
                self._tails[tail] = ids
        return ids != prompt_ids[start:]


def _first_token_from(encoding: Encoding, character: int, end: int) -> int:
    """Return the index of the first token that begins at `character` or later (len of the encoding: none)."""
    for position in range(character, end):
        token = encoding.char_to_token(position)
        if token is None:
            continue  # the tokenizer drops this character
        while token < len(encoding) and _start(encoding, token) < character:
            token += 1
        return token
    return len(encoding)


def _start(encoding: Encoding, token: int) -> int:
    span = encoding.token_to_chars(token)
    return span[0] if span is not None else 0


def _source(encoding: Encoding, token: int, text: str) -> str:
    start, end = encoding.token_to_chars(token) or (0, 0)
    return text[start:end]


def _stop_ids(folder: Path) -> list[int]:
    """Read the end tokens that the server takes from the base: generation_config.json, else config.json."""
    for name in ("generation_config.json", "config.json"):
        value: Any = read_object(folder / name)
        if value:
            value = value.get("eos_token_id")
            values = value if isinstance(value, list) else [value]
            return [number for number in values if isinstance(number, int)]
    return []


def _embeddings(folder: Path) -> int | None:
    """Read for how many tokens the base has embeddings from its config.json; None where it does not say."""
    config = read_object(folder / "config.json")
    text = config.get("text_config")
    for part in (text if isinstance(text, dict) else {}, config):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None
