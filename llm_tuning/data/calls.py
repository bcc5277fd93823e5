"""Tools and calls in the forms that others need: a template's, a server's, and one text for keys and comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_tuning.data.messages import Message

Tools = list[dict[str, Any]]
"""Each `{"type": "function", "function": {"name", "description", "parameters"}}`, as vLLM hands them to a template."""


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


class SharedTools(list[dict[str, Any]]):
    """Tools that many rows declare: nothing changes them, so that their text is made once."""

    @cached_property
    def key(self) -> str:
        """What `tools_key` returns."""
        return _sorted(self)


def key_text(message: Mapping[str, Any]) -> str:
    """Return what a message says beside its role and content, "" for most: equal for turns that say the same."""
    if len(message) == 2:
        return ""
    parts = [message.get("reasoning_content", ""), message.get("name", "")]
    parts += [f"{call['function']['name']}{_sorted(call['function']['arguments'])}" for call in calls_of(message)]
    return "\x1f".join(parts)


def tools_key(tools: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the tools of a conversation as one text, "" without any."""
    if isinstance(tools, SharedTools):
        return tools.key
    return _sorted(tools) if tools else ""


def calls_of(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the calls of a turn, none for most."""
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls", ())
    return calls


def for_template(messages: Sequence[Message], *, thinking_from: int | None = None) -> Sequence[Message]:
    """Return the messages as a template gets them from a server: vLLM gives reasoning by two names.

    From the message `thinking_from` on it has a third name, `thinking`, which no server gives a template: so an answer
    is written for templates that know no other.
    """
    if not any("reasoning_content" in message for message in messages):
        return messages
    start = len(messages) if thinking_from is None else thinking_from
    return [_with_reasoning(message, index >= start) for index, message in enumerate(messages)]


def _with_reasoning(message: Message, thinking: bool) -> Message:
    reasoning = message.get("reasoning_content")
    if reasoning is None:
        return message
    return message | {"reasoning": reasoning} | ({"thinking": reasoning} if thinking else {})


def for_request(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages as a request to an OpenAI-compatible server has them.

    Arguments are JSON text and each call has an id, without which vLLM takes no call. Reasoning has the name that vLLM
    reads of every path (`/tokenize` does not know `reasoning_content`).
    """
    sent: list[dict[str, Any]] = []
    unanswered: list[str] = []
    for number, message in enumerate(messages):
        request = {name: value for name, value in message.items() if name != "reasoning_content"}
        if "reasoning_content" in message:
            request["reasoning"] = message["reasoning_content"]
        if "tool_calls" in message:
            request["tool_calls"] = [
                _call_in_request(call, f"call_{number}_{at}") for at, call in enumerate(message["tool_calls"])
            ]
            unanswered = [call["id"] for call in request["tool_calls"]]
            # As servers answer, and so as clients send it back: vLLM makes a part of "", which some templates see.
            request["content"] = message["content"] or None
        if message["role"] == "tool":
            given = request.setdefault("tool_call_id", unanswered[0] if unanswered else f"call_{number}")
            unanswered = [name for name in unanswered if name != given]
        sent.append(request)
    return sent


def _call_in_request(call: Mapping[str, Any], otherwise: str) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id", otherwise), "type": "function", "function": named}


def _sorted(value: Any) -> str:
    return _ENCODER.encode(value)
