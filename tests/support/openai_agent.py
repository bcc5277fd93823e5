"""An agent as people write it with the `openai` SDK, which lies in vLLM's environment: JSON in and out.

    .venv-vllm/bin/python -P tests/support/openai_agent.py < asked.json > said.json

`{"url", "stream", "request", "results"}` is a chat, and what each tool gives; the messages that the model says come
back, up to the first without a call. They are sent again as the SDK has them, fields without a value included.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MAX_TURNS = 4


def main() -> None:
    asked = json.load(sys.stdin)
    json.dump(_loop(**asked), sys.stdout)


def _loop(url: str, stream: bool, request: dict[str, Any], results: dict[str, str]) -> list[dict[str, Any]]:
    from openai import OpenAI

    completions = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0).chat.completions
    messages = list(request.pop("messages"))
    said: list[dict[str, Any]] = []
    for _ in range(MAX_TURNS):
        if stream:
            with completions.stream(messages=messages, **request) as events:
                message = events.get_final_completion().choices[0].message
        else:
            message = completions.create(messages=messages, **request).choices[0].message
        said.append(message.model_dump())
        messages.append(message)
        for call in message.tool_calls or []:
            result = results[call.function.name]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not message.tool_calls:
            break
    return said


if __name__ == "__main__":
    main()
