"""A bounded choice of a data set's texts, by which two tokenizers of one base are compared.

Some rows are drawn by seed from all of them, others are kept because they bring a kind of characters that no row before
had; beside them stand fixed texts with what tokenizers cut differently: digits, blanks, line ends, other scripts,
accents, emoji, code. Conversations are rendered, so that texts begin right behind special tokens as they do in a chat.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from llm_tuning.data.chat import ChatTemplate, TemplateRefused
from llm_tuning.data.messages import Message
from llm_tuning.data.rows import Conversation, Example

DRAWN_ROWS = 48
RARE_ROWS = 64
"""Rows kept because of their characters."""
LONGEST_ROW = 1 << 14
"""Characters; a longer row is left out, unless it is the first."""
FIXED_TEXTS = (
    "12345 and 3.14159; 2026-12-01, 100%",
    "  leading,  two  and   three blanks,\ta tab",
    "First line\n\nThird line\r\n    indented",
    "你好，世界！北京2026年",
    "日本語とひらがな, 한국어, العربية, हिन्दी, ไทย, Ελληνικά, кириллица",
    "naïve café, Ünïcödé ß, e\u0301 and \u00e9",
    "👍🏽 👩‍👩‍👧 🇩🇪 ☃",
    "def f(x):\n\treturn x[0] != 1  # it's ok",
    "I'll, WE'VE, don't; “quotes” – dash… €5 & <b>html</b> {\"a\": 1}",
    "x",
)
_BLOCK_BITS = 7
"""Characters of one block of 128 are of one kind; the first block, ASCII, is in the fixed texts."""


@dataclass(frozen=True)
class SampledText:
    """A text as the model sees it, and where it is from: `row 7`, or the fixed text."""

    text: str
    source: str

    @property
    def of_row(self) -> bool:
        """Whether it is from the data set."""
        return self.source.startswith("row ")


class IdSample:
    """Collects rows while they stream by, in memory that does not grow."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._seen = 0
        self._first: Example | None = None
        self._drawn: list[Example] = []
        self._rare: list[Example] = []
        self._blocks = {0}

    @property
    def of_text(self) -> bool:
        """Whether the rows are plain text, and so begin with the tokenizer's own special tokens."""
        return self._first is not None and self._first.sequences[0].messages is None

    def offer(self, example: Example) -> None:
        """Take a kept row into the choice, or leave it out."""
        self._first = self._first or example
        if sum(conversation.characters for conversation in example.sequences) > LONGEST_ROW:
            return
        self._seen += 1
        if len(self._drawn) < DRAWN_ROWS:
            self._drawn.append(example)
        elif (at := self._random.randrange(self._seen)) < DRAWN_ROWS:
            self._drawn[at] = example
        if len(self._rare) < RARE_ROWS and (new := _blocks(example) - self._blocks):
            self._blocks |= new
            self._rare.append(example)

    def texts(self, template: ChatTemplate) -> list[SampledText]:
        """Return the fixed texts and the chosen rows, as the rows are, rendered or plain; none without a row."""
        if self._first is None:
            return []
        chosen = {example.row_number: example for example in (self._first, *self._drawn, *self._rare)}
        found = [] if self.of_text else list(_fixed_conversations(template))
        if self.of_text:
            found = [SampledText(text, shown(text)) for text in FIXED_TEXTS]
        for number, example in sorted(chosen.items()):
            texts = [_text(conversation, template) for conversation in example.sequences]
            found += [SampledText(text, f"row {number}") for text in texts if text is not None]
        return found


def shown(text: str) -> str:
    """Return the beginning of a fixed text, as a message quotes it."""
    return f"the text {text[:24]!r}"


def _fixed_conversations(template: ChatTemplate) -> Iterator[SampledText]:
    for at, text in enumerate(FIXED_TEXTS):
        then = FIXED_TEXTS[(at + 1) % len(FIXED_TEXTS)]
        messages: list[Message] = [
            {"role": role, "content": content}
            for role, content in (("user", text), ("assistant", then), ("user", then), ("assistant", text))
        ]
        for conversation in ([{"role": "system", "content": text}, *messages], messages, messages[:2]):
            rendered = _text(Conversation(conversation), template)
            if rendered is not None:
                yield SampledText(rendered, shown(text))
                break


def _text(conversation: Conversation, template: ChatTemplate) -> str | None:
    if conversation.messages is None:
        return conversation.text
    try:
        return template.render(conversation.messages, tools=conversation.tools)
    except TemplateRefused:
        return None


def _blocks(example: Example) -> set[int]:
    found: set[int] = set()
    for conversation in example.sequences:
        for text in conversation.texts:
            if not text.isascii():
                found |= {ord(character) >> _BLOCK_BITS for character in set(text)}
    return found
