"""Whether a rendered text holds what a row says with tools: declarations, calls, results.

Templates quote and set these in ways of their own (JSON, XML, Python, a schema as TypeScript), so it is the words that
are looked for: names, descriptions, values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_tuning.data.calls import Tools, calls_of
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.messages import Message

WITH_TOOLS = "use a base whose template has tools, as those of Qwen, Llama 3.1 and later, Gemma 4, GLM and gpt-oss have"
WITH_REASONING = "use a base that reasons, as those of Qwen 3, GLM 4.5, Nemotron 3, Gemma 4 and gpt-oss do"
WITH_BOTH = "use a base whose template writes both, as those of Qwen, GLM 4.5 and Nemotron 3 do"
ONE_BY_ONE = "put each call into a turn of its own with its result behind it"
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")


def check_tools_written(tools: Tools, text: str) -> None:
    """Raise RowFault where a prompt does not hold the tools of its row."""
    if not any(tool["function"]["name"] in text for tool in tools):
        rule = "the chat template of the base leaves the row's tools out"
        raise RowFault(Reason.TEMPLATE_REFUSES, rule, f"{WITH_TOOLS}, or leave such rows out")
    for index, tool in enumerate(tools):
        for path, said in _said_of(tool["function"]):
            if not is_written(said, text):
                place = f"tools[{index}].function{path}"
                rule = "the chat template of the base leaves a part of the row's tools out"
                fix = f"say it in the tool's description, or {WITH_TOOLS}"
                raise RowFault(Reason.TEMPLATE_REFUSES, rule, fix, at=place)


def check_calls_written(message: Message, text: str) -> None:
    """Raise RowFault where a text does not hold the calls of a turn."""
    calls = calls_of(message)
    if not calls:
        return
    names = Counter(call["function"]["name"] for call in calls)
    if not any(name in text for name in names):
        rule = "the chat template of the base leaves calls of tools out"
        raise RowFault(Reason.TEMPLATE_REFUSES, rule, f"{WITH_TOOLS}, or leave such rows out")
    if any(text.count(name) < count for name, count in names.items()):
        rule = "the chat template of the base writes one call of a turn, and leaves the others out"
        raise RowFault(Reason.TEMPLATE_REFUSES, rule, f"{ONE_BY_ONE}, or leave such rows out")
    for call in calls:
        if not _is_value_written(call["function"]["arguments"], text):
            rule = "the chat template of the base leaves an argument of a call out, or writes it otherwise"
            raise RowFault(Reason.TEMPLATE_REFUSES, rule, f"{WITH_TOOLS}, or leave such rows out")


def refuse_text_beside_calls(messages: Sequence[Message]) -> None:
    """Raise RowFault where a turn has text and calls: for a template that writes such a text as reasoning."""
    for index, message in enumerate(messages):
        if calls_of(message) and message["content"].strip():
            rule = "the chat template of the base writes the text beside a call as reasoning"
            fix = "give it as `reasoning_content` of the turn if it is that, remove it, or leave such rows out"
            raise RowFault(Reason.TEMPLATE_REFUSES, rule, fix, at=f"message {index + 1}")


def check_before(messages: Sequence[Message], text: str) -> None:
    """Raise RowFault where a text does not hold the calls and results of the turns before its answer."""
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if not is_written(message["content"], text):
                rule = "the chat template of the base leaves a tool's result out"
                fix = f"{WITH_TOOLS}, or leave such rows out"
                raise RowFault(Reason.TEMPLATE_REFUSES, rule, fix, at=f"message {index + 1}")
        else:
            check_calls_written(message, text)


def is_written(said: str, text: str) -> bool:
    """Return whether `text` holds `said` as it stands, as JSON, or set in other lines."""
    said = said.strip()
    if not said or said in text:
        return True
    if json.dumps(said, ensure_ascii=False)[1:-1] in text or json.dumps(said)[1:-1] in text:
        return True
    return _plain(said) in _plain(text)


def _plain(text: str) -> str:
    """Return `text` without white space, and without the slashes that begin comments of TypeScript."""
    return "".join(text.replace("//", "").split())


def _is_value_written(value: Any, text: str) -> bool:
    match value:
        case dict():
            return all(name in text and _is_value_written(part, text) for name, part in value.items())
        case list():
            return all(_is_value_written(part, text) for part in value)
        case str():
            return is_written(value, text)
        case bool() | None:
            return str(value) in text or json.dumps(value) in text
    return str(value) in text or json.dumps(value) in text


def _said_of(function: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a declaration says in words, each with its place."""
    yield ".name", function["name"]
    if function["description"]:
        yield ".description", function["description"]
    yield from _said_in(function["parameters"] or {}, ".parameters", top=True)


def _said_in(schema: Any, path: str, *, top: bool = False) -> Iterator[tuple[str, str]]:
    if not isinstance(schema, Mapping):
        return
    if not top and isinstance(schema.get("description"), str):
        yield f"{path}.description", schema["description"]
    for value in schema.get("enum", ()) if isinstance(schema.get("enum"), list) else ():
        if isinstance(value, str):
            yield f"{path}.enum", value
    for keyword, part in schema.items():
        if keyword in _BY_NAME and isinstance(part, Mapping):
            for name, inner in part.items():
                yield f"{path}.{keyword}", name
                yield from _said_in(inner, f"{path}.{keyword}.{name[:40]}")
        elif keyword in ("items", "additionalProperties"):
            yield from _said_in(part, f"{path}.{keyword}")
        elif keyword in ("anyOf", "oneOf", "allOf") and isinstance(part, list):
            for number, inner in enumerate(part):
                yield from _said_in(inner, f"{path}.{keyword}[{number}]")
