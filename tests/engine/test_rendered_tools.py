"""The prompts that are trained on are what the real vLLM makes of the same messages and tools: TRL's templates."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from llm_tuning.data.calls import for_request
from llm_tuning.data.chat import TemplateRefused
from tests.support import vllm_render
from tests.support.chat_templates import NO_TEXT_CHATS, TEMPLATES, TOKENS, tokenizer_of
from tests.support.template_trial import CHATS, QUESTION, TOOLS, calls, result, say
from tests.support.vllm_server import VLLM_PYTHON, require_vllm

NOT_BY_TEMPLATE = ("gptoss",)
"""vLLM writes prompts of gpt-oss by a program of OpenAI's, and not by the template."""
TRIED = [name for name in TEMPLATES if not name.startswith((*NO_TEXT_CHATS, *NOT_BY_TEMPLATE))]
CITY = {"city": 'Z\u00fcrich "old" town', "unit": "kelvin", "more": [1.5, None, True, {"b": 1, "a": 2}]}
ODD = {"function": {"arguments": CITY, "name": "get_weather"}, "type": "function"}
BARE = {"type": "function", "function": {"name": "clock", "description": None, "parameters": None}}
PROMPTS: list[tuple[list[dict[str, Any]], Any]] = [
    *((chat.messages[:-1], chat.tools) for chat in CHATS.values()),
    ([QUESTION, calls(ODD, reasoning_content="I have to look."), result("\u00e9 42")], [*TOOLS, BARE]),
    ([QUESTION, say("It is warm.", reasoning_content="It is July."), QUESTION], None),
]


def test_the_server_writes_the_prompts_that_were_trained_on() -> None:
    require_vllm()
    ours: list[str | None] = []
    requests: list[dict[str, Any]] = []
    for name in TRIED:
        template = tokenizer_of(name)[0].template
        for messages, tools in PROMPTS:
            try:
                ours.append(template.render(messages, tools=tools, add_generation_prompt=True))
            except TemplateRefused:
                ours.append(None)
            body = {"model": "m", "messages": for_request(messages)} | ({"tools": tools} if tools else {})
            requests.append({"template": template.text, "special_tokens": TOKENS, "body": body})
    done = subprocess.run(
        [str(VLLM_PYTHON), "-P", str(Path(vllm_render.__file__))],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    served = json.loads(done.stdout.splitlines()[-1])
    assert len(served) == len(TRIED) * len(PROMPTS)
    different = [
        (TRIED[number // len(PROMPTS)], number % len(PROMPTS), path)
        for number, (text, texts) in enumerate(zip(ours, served, strict=True))
        for path, other in texts.items()
        if other != text
    ]
    assert different == []
    assert sum(text is not None for text in ours) > len(ours) / 2
