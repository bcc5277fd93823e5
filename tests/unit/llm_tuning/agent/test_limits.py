"""What one request may ask for: an engine that all clients share is kept from none of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_tuning.agent.limits import MAX_CHOICES, check_limits
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


@pytest.mark.parametrize("choice", [None, "auto", "required"])
def test_tools_are_refused_in_words_of_ours(choice: str | None) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    refused = refusal({"tools": tools, "tool_choice": choice})
    assert refused is not None
    assert (refused.status, refused.param) == (400, "tools")
    assert "tools are not served" in str(refused)
    assert "--enable" not in str(refused)
    assert refusal({"tools": tools, "tool_choice": "none"}) is None
    assert refusal({"tools": [], "tool_choice": "auto"}) is None


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
