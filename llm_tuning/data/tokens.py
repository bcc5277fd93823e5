"""Examples to token ids and loss masks, by the `tokenizers` library and without transformers.

Ids are what the server sees and what it has to make: the prompt of the last answer as it is tokenised alone, then the
answer. Elsewhere the characters of the loss are mapped to tokens by offsets. A token that begins in the prompt is never
in the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from llm_tuning.core.files import check_regular
from llm_tuning.data.chat import ChatTemplate, load_chat_template, read_object
from llm_tuning.data.encoding import Encoder
from llm_tuning.data.faults import Fact, RowFault
from llm_tuning.data.markers import Markers
from llm_tuning.data.marks import LossMarker, Marked
from llm_tuning.data.rows import Conversation, Example, Learn
from llm_tuning.data.shown_text import Shown, show_text
from llm_tuning.data.spans import Rendered, TurnRenderer, learned_turns
from llm_tuning.data.tokenised import Limits, Parts, TokenisedRow, TokenisedSequence, build_row
from llm_tuning.errors import InputError, Problem

TOKENIZER_BYTES = 2**28
"""The largest tokenizer.json that is read: the largest of the known ones have 40 MB."""
_ENCODED_AT_ONCE = 1 << 19
"""Characters: an encoding takes some hundred bytes a token."""
_RENDERED_AT_ONCE = 1 << 18
"""Characters of a conversation times its answers: its texts may be so many. A longer one is rendered bit by bit."""
_MARGIN = 64
"""Characters behind a token that its own characters and no others decide it."""


_Waiting = tuple[Rendered, Conversation, Parts]


class RowTokenizer:
    """The tokenizer, chat template and stop tokens of one base."""

    def __init__(
        self,
        encoder: Tokenizer,
        template: ChatTemplate,
        *,
        stop_ids: Sequence[int],
        embeddings: int | None = None,
        learn: Learn = "all",
        learn_reasoning: bool = True,
    ) -> None:
        """Use `encoder` as it is, except for truncation and padding, which are off while rows are encoded.

        `learn_reasoning`: whether reasoning is in the loss; else it is shown with the prompt of its answer.
        `embeddings`: how many tokens the base has embeddings for; a row with another one is a fault.
        """
        self.template = template
        self.learn = learn
        self._encoder = Encoder(encoder)
        self._stop_ids = frozenset(stop_ids)
        eos = template.special_tokens.get("eos_token")
        self._eos_id = encoder.token_to_id(eos) if eos else None
        if self._eos_id is not None:
            self._stop_ids |= {self._eos_id}
        self._embeddings = embeddings
        stops = [token for number in self._stop_ids if (token := encoder.id_to_token(number))]
        self._renderer = TurnRenderer(template, stops, learn_reasoning=learn_reasoning)
        special, bos = self._encoder.special.values(), template.special_tokens.get("bos_token")
        self._markers = Markers(special, stops, bos, sample=self._renderer.sample, template=template.text)
        self._marker = LossMarker(self._encoder, self._stop_ids, self._renderer.sample)

    @classmethod
    def load(
        cls,
        folder: Path,
        encoder: Tokenizer | None = None,
        *,
        learn: Learn = "all",
        learn_reasoning: bool = True,
    ) -> RowTokenizer | None:
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
        return cls(
            encoder,
            template,
            stop_ids=_stop_ids(folder),
            embeddings=_embeddings(folder),
            learn=learn,
            learn_reasoning=learn_reasoning,
        )

    @property
    def stop_tokens(self) -> list[str]:
        """The tokens at which generation stops."""
        return [self._encoder.tokenizer.id_to_token(number) or str(number) for number in sorted(self._stop_ids)]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Their ids."""
        return self._stop_ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens among it."""
        return self._encoder.tokenizer.decode(list(ids), skip_special_tokens=False)

    def ids(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        """Return the token ids of texts as they are, or with the special tokens that the tokenizer sets around them."""
        tokenizer = self._encoder.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [found.ids for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)]

    def tokenise(self, examples: Sequence[Example], *, max_length: int) -> list[TokenisedRow | RowFault]:
        """Tokenise rows of one kind (all conversations or all text), in order; a row that cannot be used is a fault."""
        conversations = [conversation for example in examples for conversation in example.sequences]
        if conversations and conversations[0].messages is None:
            found = self._tokenise_texts([conversation.text or "" for conversation in conversations], max_length)
        else:
            found = self._tokenise_conversations(conversations, max_length)
        rest = iter(found)
        limits = Limits(max_length, self._embeddings, self._encoder.added)
        return [build_row(example, [next(rest) for _ in example.sequences], limits) for example in examples]

    def shown(self, conversation: Conversation, *, max_length: int | None = None) -> Iterator[Shown]:
        """Yield each text of a conversation as it is trained on; raises RowFault."""
        if conversation.messages is None:
            yield self._shown_text(conversation.text or "", max_length)
            return
        messages, _ = self._markers.clean(conversation.messages)
        for rendered in self._renderer.render(replace(conversation, messages=messages), self.learn):
            for marked in self._marker.mark(rendered):
                lost = max(0, len(marked.ids) - max_length) if max_length else 0
                end = marked.end_of(len(marked.ids) - lost - 1) if lost else len(marked.rendered.text)
                yield Shown(marked.rendered.text, marked.spans, lost).up_to(end)

    def _shown_text(self, text: str, max_length: int | None) -> Shown:
        encoder = self._encoder.tokenizer
        encoder.no_truncation()
        encoding = encoder.encode(text, add_special_tokens=not self._markers.begins_with_bos(text))
        sequence = self._text_parts(text, encoding, max_length=len(encoding.ids) + 1).sequences[0]
        ids, learned = sequence.input_ids.tolist(), sequence.learned.tolist()
        return show_text(text, encoding, ids, learned, self._encoder.text_of, max_length=max_length)

    def _tokenise_texts(self, texts: list[str], max_length: int) -> list[Parts | RowFault]:
        """Tokenise plain texts: with the tokenizer's BOS, and with the end token, where they bring none along."""
        encoder = self._encoder.tokenizer
        encoder.no_truncation()
        encoder.no_padding()
        with_bos = [not self._markers.begins_with_bos(text) for text in texts]
        wholes = iter(encoder.encode_batch_fast(_where(texts, with_bos, True), add_special_tokens=True))
        begun = iter(encoder.encode_batch_fast(_where(texts, with_bos, False), add_special_tokens=False))
        return [
            self._text_parts(text, next(wholes if bos else begun), max_length)
            for text, bos in zip(texts, with_bos, strict=True)
        ]

    def _text_parts(self, text: str, encoding: Encoding, max_length: int) -> Parts:
        ids = encoding.ids
        end = len(ids)
        while end > 0 and ids[end - 1] not in self._stop_ids and not self._encoder.text_of(ids[end - 1]).strip():
            end -= 1  # white space behind an end token is never generated
        if end == 0 or ids[end - 1] not in self._stop_ids:
            end = len(ids)
            if self._eos_id is not None:
                ids.append(self._eos_id)
                end += 1
        learned = np.zeros(len(ids), dtype=np.bool_)
        learned[1:end] = True
        sequence = TokenisedSequence(
            np.array(ids[:max_length], dtype=np.int32),
            learned[:max_length],
            len(ids),
            learns_end=0 < end <= max_length and ids[end - 1] in self._stop_ids,
            text=text,
        )
        return Parts([sequence], self._markers.of_text(text))

    def _tokenise_conversations(self, conversations: Sequence[Conversation], max_length: int) -> list[Parts | RowFault]:
        found: list[Parts | RowFault] = []
        waiting: list[_Waiting] = []
        for given in conversations:
            parts = Parts()
            try:
                messages, facts = self._markers.clean(given.messages or ())
                parts.facts |= facts
                conversation = replace(given, messages=messages)
                turns = len(learned_turns(conversation, self.learn))
                if turns > 1 and turns * conversation.characters > _RENDERED_AT_ONCE:
                    self._tokenise_long(conversation, turns, parts, max_length)
                else:
                    texts = list(self._renderer.render(conversation, self.learn))
                    waiting += [(rendered, conversation, parts) for rendered in texts]
                found.append(parts)
            except RowFault as fault:
                found.append(fault)
        for rendered, conversation, parts, encoding in self._encoded(waiting):
            self._add(parts, self._marker.mark(rendered, encoding), conversation, max_length)
        return found

    def _encoded(self, waiting: Sequence[_Waiting]) -> Iterator[tuple[Rendered, Conversation, Parts, Encoding | None]]:
        """Encode the texts of a batch together, some at a time; with None where each is to be encoded apart."""
        for some in _slices(waiting):
            encodings: Iterable[Encoding | None] = (
                [None] * len(some)
                if self._marker.always_apart
                else self._encoder.encode([rendered.text for rendered, _, _ in some])
            )
            for item, encoding in zip(some, encodings, strict=True):
                yield *item, encoding

    def _tokenise_long(self, conversation: Conversation, turns: int, parts: Parts, max_length: int) -> None:
        """Tokenise the texts of a long conversation one by one, as long as their answers begin before the cut."""
        cut: str | None = None
        seen = 0
        for rendered in self._renderer.render(conversation, self.learn):
            if cut is not None and rendered.text.startswith(cut):
                break
            seen += len(rendered.turns)
            marked = self._marker.mark(rendered)
            self._add(parts, marked, conversation, max_length)
            last = marked[-1]
            cut = None
            if last.first[-1] >= max_length:
                end = last.end_of(max_length - 1) + _MARGIN
                cut = rendered.text[:end] if end < len(rendered.text) else None
        else:
            return
        parts.unseen = turns - seen

    def _add(self, parts: Parts, marked: Iterable[Marked], conversation: Conversation, max_length: int) -> None:
        for each in marked:
            parts.sequences.append(self._sequence(each, conversation, max_length))
            parts.facts |= each.rendered.facts | ({Fact.BOUNDARY_MERGES} if each.merges else set())

    def _sequence(self, marked: Marked, conversation: Conversation, max_length: int) -> TokenisedSequence:
        last = marked.rendered.turns[-1]
        return TokenisedSequence(
            np.array(marked.ids[:max_length], dtype=np.int32),
            marked.learned[:max_length],
            len(marked.ids),
            learns_end=0 <= marked.stop_at < max_length,
            messages=(conversation.messages or [])[: last.messages],
            tools=conversation.tools,
            prompt_tokens=0 if last.continued or marked.merges else marked.first[-1],
            answers=len(marked.first),
            answers_cut=sum(first >= max_length for first in marked.first),
        )


def _where(texts: Sequence[str], flags: Sequence[bool], want: bool) -> list[str]:
    return [text for text, flag in zip(texts, flags, strict=True) if flag is want]


def _slices(waiting: Sequence[_Waiting]) -> Iterator[Sequence[_Waiting]]:
    """Cut a batch where its texts get too long to encode at once."""
    start = characters = 0
    for at, (rendered, _, _) in enumerate(waiting):
        if characters and characters + len(rendered.text) > _ENCODED_AT_ONCE:
            yield waiting[start:at]
            start, characters = at, 0
        characters += len(rendered.text)
    if start < len(waiting):
        yield waiting[start:]


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
