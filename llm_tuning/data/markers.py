"""Texts that hold a chat template's own markers: rendered already, ended already, or with roles inside.

A chat template is written around the texts of a conversation. A text that begins with the marker of a turn has one
around it already, and a second one would be learned; so such a row is refused, whichever model the marker is of. A text
of a conversation may end with the base's end token, as OpenAI's files of prompts and completions had it: the template
writes its own, so that one is removed, and the rows are counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from llm_tuning.data.answers import Asked
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.messages import Message
from llm_tuning.data.reasoning_tags import refuse_reasoning_tags

_TURNS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<|begin_of_text|>",
    "<start_of_turn>",
    "<|turn>",
    "<|start|>",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
    "<|User|>",
    "<|Assistant|>",
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<|START_OF_TURN_TOKEN|>",
    "<|start_of_role|>",
    "[INST]",
    "[SYSTEM_PROMPT]",
    "[gMASK]",
)
"""What the templates of well-known models begin a turn or a conversation with."""
_ENDS = (
    "</s>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<turn|>",
    "<eos>",
    "<|end|>",
    "<|return|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|END_OF_TURN_TOKEN|>",
)
"""What well-known models end a turn or a text with."""
_BEGIN_OF_TEXT = ("<s>", "<bos>", "<|endoftext|>")


class Markers:
    """The markers that texts for one base are searched for."""

    def __init__(
        self,
        special: Collection[str],
        stops: Collection[str],
        bos: str | None,
        *,
        sample: Asked | None,
        template: str = "",
    ) -> None:
        """Take the base's special tokens, stop tokens, BOS, how it asks for an answer, and its template."""
        self._own, self._template = frozenset(special), template
        own = tuple(sorted(filter(None, special), key=len, reverse=True))
        self._special = re.compile("|".join(map(re.escape, own)) or "(?!)")
        self._stops = tuple(sorted(filter(None, stops), key=len, reverse=True))
        self._foreign_ends = tuple(end for end in _ENDS if end not in self._stops)
        self._bos = bos
        heads = {found[0] for found in self._special.finditer(sample.prompt)} if sample is not None else set()
        starts = {*_TURNS, *(heads - set(self._stops)), *([bos] if bos else [])}
        # "<s>[INST]": a token that begins a text is a marker in front of one, too.
        begin = "|".join(map(re.escape, _BEGIN_OF_TEXT))
        self._rendered = re.compile(rf"\s*(?:(?:{begin})\s*)?(?:{'|'.join(map(re.escape, sorted(starts)))})")

    def clean(self, messages: Sequence[Message]) -> tuple[list[Message], set[Fact]]:
        """Return the messages without end tokens at the end of answers, and what was seen; raises RowFault."""
        facts: set[Fact] = set()
        refuse_reasoning_tags(messages, is_known=self._is_known)
        cleaned = []
        for index, message in enumerate(messages):
            content = message["content"]
            if self._rendered.match(content):
                raise RowFault(
                    Reason.ALREADY_RENDERED,
                    f"the text of the {message['role']} is rendered already: it begins with a chat template's marker",
                    'give the plain texts, for the template is written around them, or {"text": ...} with the whole '
                    "rendered text, all of which is learned",
                    at=f"message {index + 1}",
                )
            if message["role"] == "assistant" and (content or "tool_calls" not in message):
                content = self._without_end(content, index)
                if content is not message["content"]:
                    facts.add(Fact.ENDS_REMOVED)
            if self._special.search(content) or self._special.search(message.get("reasoning_content", "")):
                facts.add(Fact.SPECIAL_TOKENS)
            cleaned.append(message if content is message["content"] else message | {"content": content})
        return cleaned, facts

    def _is_known(self, tag: str) -> bool:
        return tag in self._template or tag in self._own

    def _without_end(self, content: str, index: int) -> str:
        text = content.rstrip()
        while stop := next((stop for stop in self._stops if text.endswith(stop)), None):
            content = text = text[: -len(stop)].rstrip()
        foreign = next((end for end in self._foreign_ends if text.endswith(end)), None)
        if foreign is not None and not (foreign == "</s>" and "<s>" in text):  # struck out text of HTML
            rule = f"the answer ends with {foreign}, the end marker of another model: it would be learned as text"
            fix = "remove it: the chat template writes the end token of the base"
            raise RowFault(Reason.ALREADY_RENDERED, rule, fix, at=f"message {index + 1}")
        if not text:
            raise RowFault(Reason.EMPTY_FIELD, "the answer is an end token and nothing else", "remove the row")
        return content

    def of_text(self, text: str) -> set[Fact]:
        """Return what a row of plain text, which is learned as it stands, holds of markers."""
        if self._special.search(text):
            return {Fact.MARKED_TEXTS}
        return {Fact.FOREIGN_MARKERS} if self._rendered.match(text) else set()

    def begins_with_bos(self, text: str) -> bool:
        """Return whether `text` brings the token that begins a text along."""
        return bool(self._bos) and text.startswith(self._bos or "")
