"""The parsers that are derived from a template read back what it renders: by vLLM's own classes, no engine started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from llm_tuning.core.vllm_parsers import NO_PARSER, ReasoningParser, ToolCallParser
from llm_tuning.data.answers import ask
from llm_tuning.data.calls import for_request
from llm_tuning.data.chat import ChatTemplate, load_chat_template
from llm_tuning.data.faults import RowFault
from llm_tuning.engines.vllm.parsers import REASONING_WAYS, TOOL_CALL_WAYS, Asked, choose_parsers
from tests.support.vllm_parsers import Answer, Case, Parsed, parse
from tests.support.vllm_server import require_vllm
from tests.support.zoo_tokenizers import layouts, read_template, write_layout

NOT_ASKED = Asked(None, None, "vllm.toolCallParser", "vllm.reasoningParser")
TOKENS = {
    "lfm2": ("<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>"),
    "glm4": ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    "nemotron": ("<tool_call>", "</tool_call>"),
    "llama3_2": ("<|python_tag|>",),
}
"""What the tokenizers of such bases have and the zoo's have not."""


@dataclass(frozen=True)
class Real:
    """A real template on a real tokenizer."""

    template: str
    layout: str
    stops: tuple[str, ...]
    tool_calls: str | None = None
    """The parser that is derived."""
    reasoning: str | None = None
    likely: tuple[str | None, str | None] = (None, None)
    """Parsers that read most of it, and are not derived for what they lose."""
    otherwise: tuple[str, ...] = ()
    """Talks that it writes as something else."""


CHATML = ("<|im_end|>",)
GEMMA = ("<turn|>", "<|tool_response>")
WORDS_AS_REASONING = ("a call after words",)
"""gpt-oss has them so."""
NO_BLOCK_BEHIND_A_RESULT = ("an answer after a result",)
"""R1's prompt opens one elsewhere; it shows the model no tools."""
REAL = [
    Real("qwen3", "qwen3", CHATML, "hermes", "qwen3"),
    Real("qwen2_5", "qwen3", CHATML, "hermes"),
    Real("qwen3_instruct_2507", "qwen3", CHATML, "hermes"),
    Real("qwen3_vl", "qwen3", CHATML, "hermes"),
    Real("qwen3_5_think", "qwen3", CHATML, "qwen3_coder", "qwen3"),
    Real("qwen3_5_nothink", "qwen3", CHATML, "qwen3_coder", likely=("qwen3_coder", "qwen3")),
    Real("qwen3_6", "qwen3", CHATML, "qwen3_coder", "qwen3"),
    Real("qwen3_8", "qwen3", CHATML, "qwen3_coder", "qwen3"),
    Real("nemotron_3_nano", "nemotron", CHATML, "qwen3_coder", "nemotron_v3"),
    Real("nemotron_3_super", "nemotron", CHATML, "qwen3_coder", "nemotron_v3"),
    Real("nemotron_3_ultra", "nemotron", CHATML, "qwen3_coder", "nemotron_v3"),
    Real("nemotron_3_5_lightning", "nemotron", CHATML, "qwen3_coder", "nemotron_v3"),
    Real("glm4moe", "glm4", ("<|user|>", "<|observation|>"), "glm45", "glm45"),
    Real("gptoss", "gptoss", ("<|return|>", "<|call|>"), "openai", "openai_gptoss", otherwise=WORDS_AS_REASONING),
    Real("lfm2_v2", "lfm2", CHATML, "lfm2"),
    Real("lfm2_2_5", "lfm2", CHATML, "lfm2"),
    Real("lfm2_2_5_v2", "lfm2", CHATML, "lfm2"),
    Real("lfm2_2_5_vl", "lfm2", CHATML, "lfm2"),
    Real(
        "deepseek_r1_distill",
        "r1_distill_fast",
        ("<｜end▁of▁sentence｜>",),
        None,
        "deepseek_r1",
        otherwise=NO_BLOCK_BEHIND_A_RESULT,
    ),
    Real("gemma4", "gemma4", GEMMA, likely=("gemma4", "gemma4")),
    Real("gemma4_v5", "gemma4", GEMMA, likely=("gemma4", "gemma4")),
    Real("llama3_1", "llama3_2", ("<|eot_id|>",), likely=("llama3_json", None)),
    Real("llama3_2", "llama3_2", ("<|eot_id|>",), likely=("llama3_json", None)),
]

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "at": {
                    "type": "object",
                    "properties": {
                        "lat": {"type": "number"},
                        "hours": {"type": "array", "items": {"type": "integer"}},
                    },
                },
                "tags": {"type": "array", "items": {"type": "string"}},
                "ratio": {"type": "number"},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "time_now",
        "description": "The time",
        "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}},
    },
}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"function": {"arguments": arguments, "name": name}, "type": "function"}


def says(content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | more


USER = {"role": "user", "content": "How is it in Zürich?"}
ONE = call("get_weather", city="Zürich", days=3)
RICH = call(
    "get_weather",
    city='a "q" \\ b\nc {x} <b>',
    days=-2,
    exact=True,
    at={"lat": 1.5, "hours": [1, 2]},
    tags=["x", "y z"],
    ratio=0.25,
)
RESULT = {"role": "tool", "content": "7 degrees", "name": "get_weather"}
TALKS: dict[str, list[dict[str, Any]]] = {
    "a call": [USER, says(tool_calls=[ONE])],
    "a call of many types": [USER, says(tool_calls=[RICH])],
    "a call after words": [USER, says("I look it up.", tool_calls=[ONE])],
    "two calls": [USER, says(tool_calls=[ONE, call("time_now", zone="CET")])],
    "a call without arguments": [USER, says(tool_calls=[call("time_now")])],
    "an answer after a result": [USER, says(tool_calls=[ONE]), RESULT, says("It is 7 degrees.")],
    "an answer beside tools": [USER, says("I do not know.\nSorry.")],
    "an answer in JSON": [USER, says('{"a": [1, 2], "b": "c"}')],
    "an answer": [USER, says("Fine, {x} <b>x</b>.")],
    "reasoning": [USER, says("Fine.", reasoning_content="Let me see.\nYes.")],
    "reasoning beside tools": [USER, says("Fine.", reasoning_content="Let me see.")],
    "reasoning before a call": [USER, says(reasoning_content="I need it.", tool_calls=[ONE])],
    "reasoning in the content": [USER, says("<think>\nLet me see.\n</think>\n\nFine.")],
}
WITHOUT_TOOLS = {"an answer", "reasoning", "reasoning in the content"}
MANY_TYPES = "a call of many types"
"""Not every template writes it so that training takes it: two of LFM2 do not."""
MUST_CALL = {"a call", "a call without arguments", "an answer after a result"}


def wanted(name: str) -> dict[str, Any]:
    last = TALKS[name][-1]
    if name == "reasoning in the content":
        return {"reasoning": "Let me see.", "content": "Fine.", "calls": []}
    calls = [{"name": one["function"]["name"], "arguments": one["function"]["arguments"]} for one in calls_of(last)]
    return {"reasoning": last.get("reasoning_content", ""), "content": last["content"], "calls": calls}


def calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message.get("tool_calls", [])  # type: ignore[no-any-return]


def answers_of(template: ChatTemplate, stops: tuple[str, ...]) -> Iterator[Answer]:
    """Every answer that the template writes whole, as a trainer has a model learn it."""
    for name, messages in TALKS.items():
        if name == "reasoning in the content" and "</think>" not in template.text:
            continue
        tools = None if name in WITHOUT_TOOLS else [WEATHER, CLOCK]
        try:
            asked = ask(template, messages, len(messages) - 1, tools=tools, stops=stops)
        except RowFault:
            continue
        want = wanted(name)
        parts = [want["reasoning"], want["content"], *(one["name"] for one in want["calls"])]
        if all(part in asked.prompt[-40:] + asked.answer for part in parts):
            yield Answer(name, asked.prompt, asked.answer, for_request(messages[:-1]), tools)


@dataclass(frozen=True)
class Tried:
    """A template with what vLLM made of its answers."""

    real: Real
    answers: list[Answer]
    chosen: tuple[str | None, str | None]
    reads: list[Any]

    def of(self, pair: tuple[str | None, str | None]) -> dict[str, Any]:
        """What a pair of parsers read, by the answer's name."""
        at = pairs_of(self.real).index(pair) * len(self.answers)
        return {answer.name: read for answer, read in zip(self.answers, self.reads[at:], strict=False)}


def pairs_of(real: Real) -> list[tuple[str | None, str | None]]:
    pairs = [(real.tool_calls, real.reasoning), (real.tool_calls, None), real.likely]
    return [pair for pair in dict.fromkeys(pairs) if pair != (None, None)]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tried], Parsed]:
    require_vllm()
    return try_all(REAL, tmp_path_factory.mktemp("bases"), tmp_path_factory.mktemp("home"))


def try_all(reals: list[Real], root: Path, home: Path) -> tuple[dict[str, Tried], Parsed]:
    """Have vLLM read what each template writes."""
    folders = {name: write_base(root / name, name) for name in dict.fromkeys(real.layout for real in reals)}
    cases, chosen = [], []
    for real in reals:
        folder = folders[real.layout]
        template = replace(load_chat_template(folder), text=read_template(f"trl/{real.template}") or "")
        parsers = choose_parsers(template.text, folder, NOT_ASKED)
        chosen.append((parsers.tool_calls, parsers.reasoning))
        answers = [answer for answer in answers_of(template, real.stops) if answer.name not in real.otherwise]
        cases.append(Case(folder, real.stops, answers, pairs_of(real), harmony=real.layout == "gptoss"))
    parsed = parse(cases, home)
    found = zip(reals, cases, chosen, parsed.reads, strict=True)
    return {real.template: Tried(real, list(case.answers), pair, reads) for real, case, pair, reads in found}, parsed


def write_base(folder: Path, name: str) -> Path:
    """Write a tokenizer with a template; the weights are not asked for."""
    folder.mkdir()
    layout = layouts()[name]
    write_layout(replace(layout, tokens=(*layout.tokens, *TOKENS.get(name, ()))), folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def test_a_spec_may_name_every_parser_that_vllm_has(tried: tuple[dict[str, Tried], Parsed]) -> None:
    parsed = tried[1]
    assert sorted(get_args(ToolCallParser)) == sorted([NO_PARSER, *parsed.tool_calls])
    assert sorted(get_args(ReasoningParser)) == sorted([NO_PARSER, *parsed.reasoning])


@pytest.mark.parametrize("real", REAL, ids=lambda real: real.template)
def test_what_is_derived_reads_all_that_the_template_writes(real: Real, tried: tuple[dict[str, Tried], Parsed]) -> None:
    one = tried[0][real.template]
    assert one.chosen == (real.tool_calls, real.reasoning)
    names = {answer.name for answer in one.answers}
    if real.tool_calls:
        assert names >= MUST_CALL
    if real.tool_calls == "hermes":
        assert MANY_TYPES in names
    if real.reasoning:
        assert names & {"reasoning", "reasoning before a call", "reasoning in the content"}
    if one.chosen != (None, None):
        assert wrong_of(one.of(one.chosen), one.chosen) == {}


def wrong_of(read: dict[str, Any], pair: tuple[str | None, str | None]) -> dict[str, Any]:
    """What was read otherwise than it was meant. What no parser is there for stays in the words."""
    wrong = {}
    for name, messages in read.items():
        want = wanted(name)
        if (want["calls"] and not pair[0]) or (want["reasoning"] and not pair[1]):
            continue
        if not reads_right(messages, want):
            wrong[name] = messages
    return wrong


@pytest.mark.parametrize("real", [real for real in REAL if real.tool_calls], ids=lambda real: real.template)
def test_calls_are_read_where_reasoning_is_left_in_the_answer(
    real: Real, tried: tuple[dict[str, Tried], Parsed]
) -> None:
    read = tried[0][real.template].of((real.tool_calls, None))
    for name in (MUST_CALL | {MANY_TYPES}) & read.keys():
        assert [message["calls"] for message in read[name]] == [wanted(name)["calls"]] * 4, name


@pytest.mark.parametrize("real", [real for real in REAL if real.likely != (None, None)], ids=lambda real: real.template)
def test_what_is_not_derived_for_what_it_loses_does_lose_something(
    real: Real, tried: tuple[dict[str, Tried], Parsed]
) -> None:
    """Once vLLM reads it all, it may be derived."""
    read = tried[0][real.template].of(real.likely)
    assert wrong_of(read, real.likely)
    if real.likely[0]:
        assert reads_right(read["a call"], wanted("a call")), "and still it is what a note names"


def test_every_way_is_tried() -> None:
    derived = {real.tool_calls for real in REAL} | {real.likely[0] for real in REAL}
    assert {way.parser for way in TOOL_CALL_WAYS} == derived - {None}
    derived = {real.reasoning for real in REAL} | {real.likely[1] for real in REAL}
    assert {way.parser for way in REASONING_WAYS} == derived - {None}


def reads_right(read: Any, want: dict[str, Any]) -> bool:
    """Whether it was read so each time; white space around a text is the template's."""
    if isinstance(read, str):
        return False
    return all(
        message["calls"] == want["calls"]
        and message["reasoning"].strip() == want["reasoning"].strip()
        and message["content"].strip() == want["content"].strip()
        for message in read
    )
