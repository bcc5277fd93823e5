"""What a chat template can say of tools and reasoning: found by rows, as the check reads them.

`python -m tests.support.template_trial` writes docs/templates.json, from which docs/reference/templates.md is made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.data.calls import Tools
from llm_tuning.data.faults import RowFault
from tests.support.chat_templates import NO_TEXT_CHATS, TEMPLATES, row_of, tokenizer_of

RECORD = Path(__file__).parents[2] / "docs/templates.json"
TOOLS: Tools = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the town"},
                    "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
                },
                "required": ["city"],
            },
        },
    }
]
QUESTION = {"role": "user", "content": "How warm is it?"}
FAMILIES = {
    "cohere": "Cohere",
    "deepseek": "DeepSeek",
    "diffusion_gemma": "Gemma",
    "gemma": "Gemma",
    "glm": "GLM",
    "gptoss": "gpt-oss",
    "lfm2": "LFM2",
    "llama": "Llama",
    "muse": "Muse",
    "nemotron": "Nemotron",
    "phi": "Phi",
    "qwen": "Qwen",
}


def call(city: str = "Paris", number: int = 1, **arguments: Any) -> dict[str, Any]:
    given = {"city": city, **(arguments or {"unit": "kelvin"})}
    return {"id": f"abcdefgh{number}", "function": {"arguments": given, "name": "get_weather"}, "type": "function"}


PARIS, ROME = call(), call("Rome", 2)


def say(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def calls(*given: dict[str, Any], content: str = "", **more: Any) -> dict[str, Any]:
    return say(content, **more) | {"tool_calls": list(given)}


def result(content: str, number: int = 1) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": f"abcdefgh{number}", "name": "get_weather"}


@dataclass(frozen=True)
class Chat:
    """A conversation that a template may be able to say."""

    title: str
    messages: list[dict[str, Any]]
    tools: Tools | None = None


CHATS = {
    "call": Chat("a call", [QUESTION, calls(PARIS)], TOOLS),
    "result": Chat("a result", [QUESTION, calls(PARIS), result("42"), say("It is warm.")], TOOLS),
    "parallel calls": Chat(
        "several calls in a turn",
        [QUESTION, calls(PARIS, ROME), result("42"), result("43", 2), say("Both are warm.")],
        TOOLS,
    ),
    "text and call": Chat("text beside a call", [QUESTION, calls(PARIS, content="Let me look.")], TOOLS),
    "reasoning": Chat("reasoning", [QUESTION, say("It is warm.", reasoning_content="It is July.")]),
    "reasoning and call": Chat(
        "reasoning before a call", [QUESTION, calls(PARIS, reasoning_content="I have to look.")], TOOLS
    ),
}


def try_template(name: str) -> dict[str, Any]:
    """Return the family of one of TRL's templates and which chats are learned with it."""
    tokenizer, _ = tokenizer_of(name)
    learned = [
        key
        for key, chat in CHATS.items()
        if not isinstance(row_of(tokenizer, chat.messages, tools=chat.tools), RowFault)
    ]
    family = next(family for start, family in FAMILIES.items() if name.startswith(start))
    return {"family": family, "learned": learned}


def main() -> None:
    """Write the record."""
    names = [name for name in TEMPLATES if not name.startswith(NO_TEXT_CHATS)]
    record = {
        "chats": {key: chat.title for key, chat in CHATS.items()},
        "templates": {name: try_template(name) for name in names},
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
