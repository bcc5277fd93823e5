"""A script as people write it with litellm, which lies in an environment of its own.

    .venv-clients/bin/python -P tests/support/litellm_client.py MODEL < weather.json > found.json

OPENAI_BASE_URL and OPENAI_API_KEY say where; MODEL is a model to chat with, the input a tool.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import litellm  # type: ignore[import-not-found] # of .venv-clients
import openai

OPENAI = {"custom_llm_provider": "openai"}
ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
HI = [{"role": "user", "content": "Hi"}]


def files() -> dict[str, Any]:
    made = litellm.create_file(file=("rows.jsonl", ROWS), purpose="fine-tune", **OPENAI)
    read = litellm.file_retrieve(file_id=made.id, **OPENAI)
    content = litellm.file_content(file_id=made.id, **OPENAI).content
    listed = [file.id for file in litellm.file_list(purpose="fine-tune", **OPENAI)]
    deleted = litellm.file_delete(file_id=made.id, **OPENAI)
    return {
        "bytes": read.bytes,
        "same": content == ROWS,
        "listed": made.id in listed,
        "deleted": deleted.deleted,
        "gone": _refusal(lambda: litellm.file_retrieve(file_id=made.id, **OPENAI)),
    }


def jobs() -> dict[str, Any]:
    file = litellm.create_file(file=("rows.jsonl", ROWS), purpose="fine-tune", **OPENAI)
    asked = {"model": "tiny", "training_file": file.id, "suffix": "litellm", "seed": 3}
    made = litellm.create_fine_tuning_job(**asked, hyperparameters={"n_epochs": 2}, **OPENAI)
    read = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=made.id, **OPENAI)
    listed = [job.id for job in litellm.list_fine_tuning_jobs(limit=5, **OPENAI).data]
    cancelled = litellm.cancel_fine_tuning_job(fine_tuning_job_id=made.id, **OPENAI)
    wrong = {**asked, "training_file": "file-none"}
    return {
        "id": made.id,
        "epochs": read.hyperparameters.n_epochs,
        "seed": read.seed,
        "states": [made.status, read.status, cancelled.status],
        "listed": made.id in listed,  # those of one second are in no order
        "no_file": _refusal(lambda: litellm.create_fine_tuning_job(**wrong, **OPENAI)),
    }


def chats(model: str, weather: dict[str, Any]) -> dict[str, Any]:
    def ask(messages: list[Any], **more: Any) -> Any:
        return litellm.completion(model=model, messages=messages, **more, **OPENAI)

    def stream(messages: list[Any], **more: Any) -> Any:
        chunks = list(ask(messages, stream=True, **more))
        return litellm.stream_chunk_builder(chunks, messages=messages).choices[0]

    whole, streamed = ask(HI).choices[0], stream(HI)
    calls = {"whole": ask(HI, tools=[weather]).choices[0], "streamed": stream(HI, tools=[weather])}
    message = calls["streamed"].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Sun"}
    unknown = _refusal(lambda: litellm.completion(model="gpt-none", messages=HI, **OPENAI))
    return {
        "whole": whole.message.content,
        "streamed": streamed.message.content,
        "calls": {how: _call(choice) for how, choice in calls.items()},
        "reasons": [whole.finish_reason, streamed.finish_reason],
        "after": stream([*HI, message.model_dump(), result], tools=[weather]).message.content,
        "unknown": unknown,
    }


def _call(choice: Any) -> list[Any]:
    (call,) = choice.message.tool_calls
    return [choice.finish_reason, call.function.name, json.loads(call.function.arguments)]


def _refusal(do: Any) -> list[Any]:
    try:
        do()
    except openai.APIStatusError as error:  # litellm's own errors are those
        return [error.status_code, error.code, error.param]
    return []


if __name__ == "__main__":
    found = {"files": files(), "jobs": jobs(), "chats": chats(sys.argv[1], json.load(sys.stdin))}
    print(json.dumps(found))
