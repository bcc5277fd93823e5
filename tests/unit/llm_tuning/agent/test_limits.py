"""What one request may ask for: an engine that all clients share is kept from none of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.agent.limits import MAX_CHOICES, check_limits, check_tools
from llm_tuning.agent.refusal import Refused
from tests.unit.llm_tuning.agent.conftest import Open, Pod


def refusal(asked: dict[str, Any], most: int = MAX_CHOICES) -> Refused | None:
    try:
        check_limits(asked, most)
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize("name", ["n", "best_of"])
@pytest.mark.parametrize("value", [17, 16384, 2**62, 1e300, "16384", "1", True, 2.5, [1], {"a": 1}, float("inf")])
def test_too_many_answers_are_refused_however_they_are_written(name: str, value: Any) -> None:
    """vLLM takes numbers in texts as well."""
    refused = refusal({name: value})
    assert refused is not None
    assert (refused.status, refused.param) == (400, name)
    assert name in str(refused)
    assert len(str(refused)) < 400


def test_nan_is_no_number_of_answers() -> None:
    refused = refusal({"n": float("nan")})
    assert refused is not None
    assert refused.param == "n"


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"n": None, "best_of": None},
        {"n": 16},
        {"n": 2.0},
        {"best_of": 16, "n": 1},
        {"n": 0},  # vLLM's to refuse
        {"n": -1},
        {"prompt": "x" * 100_000},
        {"prompt": list(range(100_000))},
        {"prompt": ["x"] * 256},
        {"prompt": [[1, 2]] * 256},
        {"prompt": ["x"] * 16, "n": 16},
        {"prompt": []},
    ],
)
def test_what_is_usual_passes(asked: dict[str, Any]) -> None:
    assert refusal(asked) is None


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": ["x"] * 257},
        {"prompt": [[1]] * 16_384},
        {"prompt": ["x"] * 17, "n": 16},
        {"prompt": ["x"] * 129, "best_of": 2},
    ],
)
def test_many_prompts_at_once_are_refused(asked: dict[str, Any]) -> None:
    refused = refusal(asked)
    assert refused is not None
    assert (refused.status, refused.param, refused.code) == (400, "prompt", "too_many_choices")


def test_the_spec_may_allow_more_or_less() -> None:
    assert refusal({"n": 64}, 64) is None
    assert refusal({"n": 2}, 1) is not None
    assert refusal({"prompt": ["x"] * 1024, "n": 1}, 64) is None


TOOLS = [{"type": "function", "function": {"name": "f"}}]
NAMED = {"type": "function", "function": {"name": "f"}}


def refused_tools(asked: dict[str, Any], *, reads_calls: bool, chat: bool = True) -> Refused | None:
    try:
        check_tools(asked, reads_calls=reads_calls, chat=chat)
    except Refused as refused:
        return refused
    return None


@pytest.mark.parametrize("choice", [None, "auto", "required", NAMED], ids=str)
def test_tools_that_no_parser_would_read_are_refused_with_the_field_that_names_one(choice: Any) -> None:
    refused = refused_tools({"tools": TOOLS, "tool_choice": choice}, reads_calls=False)
    assert refused is not None
    assert (refused.status, refused.param) == (400, "tools")
    assert "spec.vllm.toolCallParser" in str(refused)
    assert "--enable" not in str(refused)
    assert refused_tools({"tools": TOOLS, "tool_choice": choice}, reads_calls=True) is None


@pytest.mark.parametrize("asked", [{"tools": TOOLS, "tool_choice": "none"}, {"tools": [], "tool_choice": "auto"}, {}])
@pytest.mark.parametrize("reads_calls", [True, False])
def test_who_asks_for_no_call_needs_no_parser(asked: dict[str, Any], reads_calls: bool) -> None:
    assert refused_tools(asked, reads_calls=reads_calls) is None


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [("functions", [{"name": "f"}], "tools"), ("function_call", "auto", "tool_choice")],
)
def test_openais_older_form_is_refused_and_not_ignored(name: str, value: Any, instead: str) -> None:
    refused = refused_tools({name: value}, reads_calls=True)
    assert refused is not None
    assert (refused.status, refused.param) == (400, name)
    assert f"send {instead}" in str(refused)


def test_a_plain_prompt_has_no_tools() -> None:
    refused = refused_tools({"prompt": "x", "tools": TOOLS}, reads_calls=True, chat=False)
    assert refused is not None
    assert refused.param == "tools"


async def test_an_engine_that_reads_calls_gets_the_request_as_it_came(pod: Pod, open_door: Open) -> None:
    pod.want({"a": "ft_a"})
    await pod.turn()
    asked = {
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 3,
    }
    await open_door(pod)
    refused = await pod.chat("a", **asked)
    assert (refused.status, json.loads(refused.body)["error"]["param"]) == (400, "tools")
    await open_door(pod, reads_tool_calls=True)
    assert (await pod.chat("a", **asked)).status == 200
    got = pod.engine.bodies[-1]
    assert {name: got[name] for name in asked} == asked


async def test_a_refusal_has_the_form_that_openais_clients_read_and_costs_the_engine_nothing(door: Pod) -> None:
    answer = await door.chat("a", n=16384, max_tokens=900)
    error = json.loads(answer.body)["error"]
    assert answer.status == 400
    assert error.pop("message").startswith("n must be at most 16, got 16384")
    assert error == {"type": "invalid_request_error", "param": "n", "code": "too_many_choices"}
    assert door.engine.called("chat") == []


async def test_the_number_of_answers_is_the_services(pod: Pod, open_door: Open) -> None:
    pod.want({"a": "ft_a"})
    await pod.turn()
    await open_door(pod, max_choices=2)
    assert (await pod.chat("a", n=3)).status == 400
    assert (await pod.chat("a", n=2)).status == 200
