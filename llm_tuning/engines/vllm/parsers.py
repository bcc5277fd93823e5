"""Which of vLLM's parsers read back what a chat template writes: tool calls, and reasoning before an answer.

A parser is derived only where it is certain: tests/engine has each read back the calls and the reasoning that real
templates of its kind render, streamed and not. The rest is named by the spec (`vllm.toolCallParser`,
`vllm.reasoningParser`) or the environment of `launch_llm.sh`, or stays unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.core.files import read_json
from llm_tuning.core.vllm_parsers import FROM_TOKENIZER, NO_PARSER
from llm_tuning.engines.vllm.limits import value_of_flag

TOOL_CALL_FLAG, REASONING_FLAG = "--tool-call-parser", "--reasoning-parser"
_THINK = ("<think>", "</think>")


@dataclass(frozen=True)
class _Way:
    """How a kind of templates writes, and vLLM's parser for it."""

    parser: str
    marks: tuple[str, ...]
    """Texts that all stand in such a template."""
    without: tuple[str, ...] = ()
    """Texts of which none does."""
    tokens: tuple[str, ...] = ()
    """What has to be a token of the tokenizer: without it vLLM ends as it starts, or misses the place."""
    doubt: str = ""
    """What the parser does not read back; empty where it is certain."""

    def writes(self, template: str) -> bool:
        return all(mark in template for mark in self.marks) and not any(mark in template for mark in self.without)


TOOL_CALL_WAYS = (
    _Way("qwen3_coder", ("<tool_call>", "<function=", "<parameter=")),  # Qwen3.5 and later, Nemotron 3
    _Way("glm45", ("<tool_call>", "<arg_key>", "<arg_value>")),
    _Way("hermes", ("<tool_call>", '{"name": "', '"arguments": ')),  # Qwen2.5, Qwen3
    _Way(
        "llama3_json",
        ("<|start_header_id|>", '"parameters": ', "tool_calls"),
        tokens=("<|python_tag|>",),
        doubt="it loses an answer that is itself JSON, and the empty arguments of a call, when it is streamed",
    ),
    _Way(
        "lfm2",
        ("<|tool_call_start|>", "tool_calls"),
        tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    _Way("openai", ("<|channel|>commentary", "functions.", "<|call|>"), tokens=("<|channel|>", "<|call|>")),
    _Way(
        "gemma4",
        ("<|tool_call>call:", "<tool_call|>"),
        tokens=("<|tool_call>", "<tool_call|>"),
        doubt="it loses the words of an answer that has calls, too, when it is not streamed",
    ),
)
"""The first that fits counts."""
REASONING_WAYS = (
    _Way("nemotron_v3", (*_THINK, "truncate_history_thinking", "reasoning_content"), tokens=_THINK),
    _Way("glm45", (*_THINK, "[gMASK]", "reasoning_content"), tokens=_THINK),
    _Way("qwen3", (*_THINK, "<|im_start|>", "reasoning_content", "enable_thinking is false"), tokens=_THINK),
    _Way(  # the prompt closes the block unless a request asks to think
        "qwen3",
        (*_THINK, "<|im_start|>", "reasoning_content", "enable_thinking is true"),
        tokens=_THINK,
        doubt="it takes an answer for reasoning unless a request asks to think",
    ),
    _Way("deepseek_r1", ("<｜Assistant｜><think>", "</think>"), tokens=_THINK),
    _Way(
        "gemma4",
        ("<|channel>thought", "<channel|>", "reasoning_content"),
        tokens=("<|channel>", "<channel|>"),
        doubt="streamed it reads none unless its parser of tool calls is on as well",
    ),
    _Way("openai_gptoss", ("<|channel|>analysis", "<|channel|>final"), tokens=("<|channel|>", "<|message|>")),
)


@dataclass(frozen=True)
class Parsers:
    """vLLM's names; None where nothing is read."""

    tool_calls: str | None = None
    reasoning: str | None = None
    notes: tuple[str, ...] = ()
    """What could not be told, once for each."""


@dataclass(frozen=True)
class Asked:
    """What the user set, and the names by which they set it."""

    tool_calls: str | None
    reasoning: str | None
    tool_calls_field: str
    reasoning_field: str


def choose_parsers(template: str, base: Path, asked: Asked, further: Sequence[str] = ()) -> Parsers:
    """Choose for `template`, that which the server renders with, and the tokenizer in the folder `base`.

    What is asked for wins, and over all what stands in `further`, vLLM's own arguments.
    """
    fixed = [value_of_flag(further, flag) for flag in (TOOL_CALL_FLAG, REASONING_FLAG)]
    calls, reasoning = fixed[0] or asked.tool_calls, fixed[1] or asked.reasoning
    notes: list[str] = []
    tokens = _Tokens(base)
    if calls is None and reasoning != FROM_TOKENIZER:
        calls, note = _TOOL_CALLS.derive(template, tokens)
        notes += [f"{note}: {asked.tool_calls_field} sets one"] if note else []
    if reasoning is None and calls != FROM_TOKENIZER:
        reasoning, note = _REASONING.derive(template, tokens)
        notes += [f"{note}: {asked.reasoning_field} sets one"] if note else []
    named = [None if name == NO_PARSER or own else name for name, own in zip((calls, reasoning), fixed, strict=True)]
    return Parsers(named[0], named[1], tuple(notes))


@dataclass(frozen=True)
class _Kind:
    """What is read: tool calls, or reasoning."""

    words: str
    ways: tuple[_Way, ...]
    written: re.Pattern[str]
    """In templates that write it at all."""

    def derive(self, template: str, has: Callable[[str], bool]) -> tuple[str | None, str]:
        """Return the parser, or None and why, "" where there is nothing to read."""
        way = next((way for way in self.ways if way.writes(template)), None)
        if way is None:
            nothing = not self.written.search(template)
            return (
                None,
                "" if nothing else f"no parser is certain to read the {self.words} that this chat template writes",
            )
        if missing := [token for token in way.tokens if not has(token)]:
            doubt = f"it needs {', '.join(missing)} as tokens of the tokenizer"
        else:
            doubt = way.doubt
        return (
            (None, f"vLLM's {way.parser} reads the {self.words} of this chat template, but {doubt}")
            if doubt
            else (way.parser, "")
        )


_TOOL_CALLS = _Kind("tool calls", TOOL_CALL_WAYS, re.compile(r"\btool_calls\b"))
_REASONING = _Kind("reasoning", REASONING_WAYS, re.compile(r"\breasoning_content\b|</think>"))


class _Tokens:
    """Whether a text is one token, by tokenizer.json; read when it is first asked."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._known: frozenset[str] | None = None

    def __call__(self, text: str) -> bool:
        if self._known is None:
            self._known = _added_tokens(self._base)
        return text in self._known


def _added_tokens(base: Path) -> frozenset[str]:
    try:
        value = read_json(base / "tokenizer.json")
        return frozenset(str(token["content"]) for token in value["added_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()  # a base without that file: nothing is certain
