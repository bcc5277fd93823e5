"""Which parsers vLLM is started with: what is asked for, else what is certain, else none with a note."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_tuning.engines.vllm.parsers import Asked, Parsers, choose_parsers

QWEN = (
    '<tool_call>\n{"name": " + tool_call.name + ", "arguments": ... tool_calls <|im_start|> reasoning_content '
    "<think></think> enable_thinking is false"
)
OWN_WAY = "{{ message.tool_calls }} {{ message.reasoning_content }}"
FIELDS = ("vllm.toolCallParser", "vllm.reasoningParser")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tokens = [{"id": id, "content": content} for id, content in enumerate(("<think>", "</think>"))]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    return tmp_path


def choose(
    template: str, base: Path, tool_calls: str | None = None, reasoning: str | None = None, further: str = ""
) -> Parsers:
    return choose_parsers(template, base, Asked(tool_calls, reasoning, *FIELDS), further.split())


def test_what_a_template_writes_names_its_parsers(base: Path) -> None:
    assert choose(QWEN, base) == Parsers("hermes", "qwen3")


@pytest.mark.parametrize("template", ["", "{{ messages }}", "{{ '<|im_start|>' }}"])
def test_a_template_without_calls_and_reasoning_needs_none_and_no_words(base: Path, template: str) -> None:
    assert choose(template, base) == Parsers()


def test_what_is_asked_for_wins(base: Path) -> None:
    assert choose(QWEN, base, "qwen3_json", "deepseek_r1") == Parsers("qwen3_json", "deepseek_r1")
    assert choose(QWEN, base, "none", "none") == Parsers()
    assert choose(QWEN, base, "none") == Parsers(None, "qwen3")


def test_what_no_parser_is_known_to_read_is_said_once_for_each(base: Path) -> None:
    parsers = choose(OWN_WAY, base)
    assert (parsers.tool_calls, parsers.reasoning) == (None, None)
    calls, reasoning = parsers.notes
    assert "tool calls" in calls
    assert calls.endswith("vllm.toolCallParser sets one")
    assert "reasoning" in reasoning
    assert reasoning.endswith("vllm.reasoningParser sets one")
    assert choose(OWN_WAY, base, "none", "none").notes == ()


def test_a_parser_that_vllm_would_end_with_is_not_derived(base: Path, tmp_path: Path) -> None:
    """It looks for its tokens as it starts."""
    (base / "tokenizer.json").write_text(json.dumps({"added_tokens": []}))
    parsers = choose(QWEN, base)
    assert (parsers.tool_calls, parsers.reasoning) == ("hermes", None)
    assert "vLLM's qwen3" in parsers.notes[0]
    assert "<think>, </think>" in parsers.notes[0]
    assert choose(QWEN, tmp_path / "no-such-base").reasoning is None


def test_a_parser_that_loses_something_is_named_and_not_derived(base: Path) -> None:
    parsers = choose('<|start_header_id|> tool_calls "parameters": <|python_tag|>', base)
    assert parsers.tool_calls is None
    assert "llama3_json" in parsers.notes[0]


def test_hf_is_for_both_or_alone(base: Path) -> None:
    """vLLM refuses it beside another."""
    assert choose(QWEN, base, "hf") == Parsers("hf", None)
    assert choose(QWEN, base, None, "hf") == Parsers(None, "hf")


@pytest.mark.parametrize("further", ["--tool-call-parser pythonic --enable-auto-tool-choice", "--tool-call-parser=x"])
def test_vllms_own_arguments_win_over_all(base: Path, further: str) -> None:
    assert choose(QWEN, base, "hermes", None, further) == Parsers(None, "qwen3")


def test_reasoning_among_vllms_own_arguments_is_left_to_them(base: Path) -> None:
    assert choose(QWEN, base, None, None, "--reasoning-parser deepseek_r1") == Parsers("hermes", None)
