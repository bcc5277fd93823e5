"""Answers with reasoning and calls: whole, added up from a stream, and as a message to go on from."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.client.answers import Assembly, ChatAnswer, ChatPiece, ToolCall, read_answer


def call(number: int, name: str, arguments: str) -> ToolCall:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = (call(1, "get_weather", '{"city": "Zürich"}'), call(2, "clock", "{}"))
CALLING = ChatAnswer("One moment.", "ft_a", {"total_tokens": 9}, "I look it up.", CALLS, "tool_calls")
IN_WORDS = ChatAnswer("7 degrees.", "ft_a", {}, finish_reason="stop")


def whole(answer: ChatAnswer) -> dict[str, Any]:
    """As vLLM answers."""
    message = {"role": "assistant", "content": answer.text or None, "reasoning": answer.reasoning or None}
    message["tool_calls"] = list(answer.tool_calls)
    return {"choices": [{"message": message, "finish_reason": answer.finish_reason}], "usage": answer.usage or None}


def parts(index: int, whole: ToolCall) -> list[dict[str, Any]]:
    """The first part of a call has its id and name, each further one some of its arguments."""
    function = whole["function"]
    first = {**whole, "index": index, "function": {"name": function["name"], "arguments": ""}}
    return [first, *({"index": index, "function": {"arguments": letter}} for letter in function["arguments"])]


def events(*deltas: dict[str, Any], end: str, usage: dict[str, Any]) -> list[dict[str, Any]]:
    said = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": end}]}
    return [*said, last, {"choices": [], "usage": usage}]


@pytest.mark.parametrize("answer", [CALLING, IN_WORDS], ids=["calling", "in words"])
def test_a_whole_answer(answer: ChatAnswer) -> None:
    assert read_answer(whole(answer), "ft_a") == answer


def test_a_stream_adds_up_to_the_whole_answer() -> None:
    words = ({"role": "assistant", "content": ""}, {"reasoning": "I look "}, {"reasoning": "it up."})
    words += ({"content": "One "}, {"content": "moment."})
    calls = [{"tool_calls": [part]} for index, one in enumerate(CALLS) for part in parts(index, one)]
    growing = Assembly("ft_a")
    pieces = [growing.take(event) for event in events(*words, *calls, end="tool_calls", usage=CALLING.usage)]
    said = [piece for piece in pieces if piece != ChatPiece()]
    assert said == [
        ChatPiece(reasoning="I look "),
        ChatPiece(reasoning="it up."),
        ChatPiece("One "),
        ChatPiece("moment."),
    ]
    assert growing.answer() == CALLING


def test_parts_of_two_calls_may_come_in_turn() -> None:
    both = [parts(index, one) for index, one in enumerate(CALLS)]
    first = [{"tool_calls": [one[0] for one in both]}]
    rest = [{"tool_calls": [part]} for part in [*both[1][1:], *both[0][1:]]]
    growing = Assembly("ft_a")
    for event in events(*first, *rest, end="tool_calls", usage={}):
        growing.take(event)
    assert growing.answer().tool_calls == CALLS


def test_of_several_answers_the_first_one_counts() -> None:
    growing = Assembly("ft_a")
    for index, text in ((1, "No"), (0, "Yes"), (1, "!"), (0, ".")):
        growing.take({"choices": [{"index": index, "delta": {"content": text}}]})
    assert growing.answer().text == "Yes."


def test_an_answer_is_the_next_message() -> None:
    assert IN_WORDS.message == {"role": "assistant", "content": "7 degrees."}
    assert CALLING.message == {
        "role": "assistant",
        "content": "One moment.",
        "reasoning": "I look it up.",
        "tool_calls": list(CALLS),
    }
    silent = ChatAnswer("", "ft_a", {}, tool_calls=CALLS[:1])
    assert silent.message == {"role": "assistant", "content": None, "tool_calls": [CALLS[0]]}
