"""Results of tools: which call each one answers, and whether a template says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llm_tuning.data.calls import calls_of
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.messages import Message

_SAYS_WHOSE = ("tool_call_id", "name")
"""Fields of a result that say which call it answers."""


def check_results(messages: Sequence[Message]) -> None:
    """Raise RowFault where a result answers no call, or where something follows a call that has no result."""
    waiting: list[Mapping[str, Any]] = []
    last = 0
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            waiting.remove(_call_of(message, waiting, f"message {index + 1}"))
            continue
        if waiting:
            rule = "a call has no result, and another turn follows"
            fix = "add what the tool gave as a turn of role tool (ShareGPT: observation), or end the row with the call"
            raise RowFault(Reason.CALL_WITHOUT_RESULT, rule, fix, at=f"message {last + 1}")
        waiting, last = list(calls_of(message)), index


def check_order(messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> None:
    """Raise RowFault where results stand in another order than their calls, and `render` does not say whose they are.

    `messages` have passed `check_results`. Results in the order of their calls need no word of it.
    """
    for first, places in _places(messages):
        if places == sorted(places):
            continue
        results = messages[first : first + len(places)]
        in_order = [result for _, result in sorted(zip(places, results, strict=True), key=lambda pair: pair[0])]
        others = [_as_if(result, other) for result, other in zip(results, in_order, strict=True)]
        if render(messages) == render([*messages[:first], *others, *messages[first + len(places) :]]):
            rule = "results of tools stand in another order than their calls, and the chat template of the base does "
            fix = "put them into the order of the calls"
            raise RowFault(
                Reason.TEMPLATE_REFUSES, f"{rule}not write which call each answers", fix, at=f"message {first + 1}"
            )


def _places(messages: Sequence[Message]) -> Iterator[tuple[int, list[int]]]:
    """Yield for each turn with several calls where its results begin, and the place of each one's call."""
    for index, message in enumerate(messages):
        calls = calls_of(message)
        if len(calls) < 2:
            continue
        waiting = dict(enumerate(calls))
        places: list[int] = []
        for result in messages[index + 1 : index + 1 + len(calls)]:
            if result["role"] != "tool":
                break
            call = _call_of(result, list(waiting.values()), "")
            places.append(next(place for place, each in waiting.items() if each is call))
            del waiting[places[-1]]
        yield index + 1, places


def _as_if(result: Message, other: Message) -> Message:
    """Return `result` as an answer to the call of `other`."""
    kept = {name: value for name, value in result.items() if name not in _SAYS_WHOSE}
    return kept | {name: other[name] for name in _SAYS_WHOSE if name in other}


def _call_of(message: Message, waiting: Sequence[Mapping[str, Any]], at: str) -> Mapping[str, Any]:
    """Return the call that a result answers: by its id, by the tool's name, or the next one."""
    if not waiting:
        rule = "a tool's result has no call before it that waits for one"
        fix = "add the assistant's turn with the call; one in the text of a turn is not read: write it as `tool_calls`"
        raise RowFault(Reason.RESULT_WITHOUT_CALL, rule, fix, at=at)
    given, name = message.get("tool_call_id"), message.get("name")
    found = [call for call in waiting if given is None or call.get("id", given) == given]
    if not found:
        rule = "`tool_call_id` is the id of no call that waits for its result"
        raise RowFault(Reason.RESULT_WITHOUT_CALL, rule, "give it the id of its call", at=at)
    found = [call for call in found if name is None or call["function"]["name"] == name]
    if not found:
        rule = "`name` of a tool's result is another than that of its call"
        raise RowFault(Reason.RESULT_WITHOUT_CALL, rule, "name the tool that was called", at=at)
    return found[0]
