"""Answers of a chat: whole, in pieces, and a whole one made of its pieces. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""As in OpenAI's API: {"role": "user", "content": "..."}."""
ToolCall = dict[str, Any]
"""As there: {"id": "...", "type": "function", "function": {"name": "...", "arguments": "JSON text of an object"}}."""


@dataclass(frozen=True)
class ChatAnswer:
    """A model's answer."""

    text: str
    """What it says; empty where it only calls tools."""
    model_id: str
    """The adapter that has answered, or the base's name."""
    usage: dict[str, Any]
    """Tokens, as the engine counts them; those of a stream if `stream_options` asks for them."""
    reasoning: str = ""
    """What it thought before it spoke, where the service reads that apart from the text."""
    tool_calls: tuple[ToolCall, ...] = ()
    """What it wants called, in its order."""
    finish_reason: str = ""
    """`stop`, `tool_calls`, or `length`: then the answer is cut off, and with it the last call's arguments."""

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> Message:
        """The answer as a message to go on from; the results of its calls come behind it, each of role `tool`."""
        message: Message = {"role": "assistant", "content": self.text or None}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        return message


@dataclass(frozen=True)
class ChatPiece:
    """A piece of an answer in the making: of its text, or of its reasoning. The last piece has the whole answer."""

    text: str = ""
    reasoning: str = ""
    answer: ChatAnswer | None = None
    """All of it with its calls, at the end."""

    def __str__(self) -> str:
        return self.text


def read_answer(value: Any, model_id: str) -> ChatAnswer:
    """Read the first choice of a whole answer; raises TypeError, KeyError, IndexError or AttributeError for others."""
    choice = value["choices"][0]
    message = choice["message"]
    return ChatAnswer(
        message["content"] or "",
        model_id,
        value.get("usage") or {},
        message.get("reasoning") or "",
        tuple(message.get("tool_calls") or ()),
        choice.get("finish_reason") or "",
    )


@dataclass
class Assembly:
    """An answer that grows by the events of its stream."""

    model_id: str
    _text: str = ""
    _reasoning: str = ""
    _calls: dict[int, ToolCall] = field(default_factory=dict)
    _usage: dict[str, Any] = field(default_factory=dict)
    _finish_reason: str = ""

    def take(self, event: Mapping[str, Any]) -> ChatPiece:
        """Add what an event says of the first choice, and return its words."""
        self._usage = event.get("usage") or self._usage
        text = reasoning = ""
        for choice in event.get("choices") or ():
            if choice.get("index", 0):
                continue
            delta = choice.get("delta") or {}
            text += delta.get("content") or ""
            reasoning += delta.get("reasoning") or ""
            for part in delta.get("tool_calls") or ():
                self._take_call(part)
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._text += text
        self._reasoning += reasoning
        return ChatPiece(text, reasoning)

    def _take_call(self, part: Mapping[str, Any]) -> None:
        """Add a part of a call: the first has its id and its name, and its arguments come in any number of parts."""
        begun = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._calls.setdefault(part["index"], begun)
        call["id"] = part.get("id") or call["id"]
        given = part.get("function") or {}
        for name in ("name", "arguments"):
            call["function"][name] += given.get(name) or ""

    def answer(self) -> ChatAnswer:
        """Return what has come."""
        calls = tuple(call for _, call in sorted(self._calls.items()))
        return ChatAnswer(self._text, self.model_id, self._usage, self._reasoning, calls, self._finish_reason)
