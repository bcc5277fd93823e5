"""What becomes of the rows that OpenAI's pages on fine-tuning show: learned, or refused by row and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import DatasetRefused, check_dataset
from llm_tuning.modes import MODES
from llm_tuning.openai_api.files import FileStore
from llm_tuning.openai_api.names import upload_path
from llm_tuning.pod.wording import SPEC_WORDS

Row = dict[str, Any]

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "How warm is it in Paris?"}
ANSWER = {"role": "assistant", "content": "21 degrees"}
OTHER = {"role": "assistant", "content": "I do not know."}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather now.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION | {"strict": True}}
CALLED = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
CALLS = {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": CALLED}]}
TWO_CALLS = [call | {"id": name} for call in CALLS["tool_calls"] for name in ("call_1", "call_2")]  # type: ignore[operator]
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "21"}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def supervised(*messages: Row, **more: Any) -> tuple[str, Row]:
    return "sft", {"messages": list(messages), **more}


def preference(preferred: Any, other: Any, **more: Any) -> tuple[str, Row]:
    given = {"messages": [USER], **more}
    return "dpo", {"input": given, "preferred_output": preferred, "non_preferred_output": other}


LEARNED: dict[str, tuple[str, Row]] = {
    "a chat": supervised(SYSTEM, USER, ANSWER),
    "a chat of several turns": supervised(SYSTEM, USER, ANSWER, USER, ANSWER),
    "weights of turns": supervised(SYSTEM, USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
    "a call": supervised(USER, CALLS, tools=[TOOL], parallel_tool_calls=False),
    "a call and its answer": supervised(USER, CALLS | {"weight": 0}, RESULT, ANSWER, tools=[TOOL]),
    "functions": supervised(USER, {"role": "assistant", "function_call": CALLED}, functions=[FUNCTION]),
    "text in parts": supervised(USER | {"content": [{"type": "text", "text": "Hello"}]}, ANSWER),
    "prompt and completion": ("sft", {"prompt": "How warm? ->", "completion": " 21 degrees\n"}),
    "a preference": preference([ANSWER], [OTHER], tools=[], parallel_tool_calls=True),
    "a preferred call": preference([CALLS], [OTHER], tools=[TOOL]),
}
REFUSED: dict[str, tuple[tuple[str, Row], str, str]] = {
    "an image": (
        supervised(USER | {"content": [{"type": "text", "text": "What is it?"}, IMAGE]}, ANSWER),
        "messages[0].content[1]: `image_url` belongs to images",
        "leave such rows out",
    ),
    "a weight between": (
        supervised(USER, ANSWER | {"weight": 0.5}),
        "messages[1]: `weight` must be 1 or true (learned), 0 or false",
        "give one of these",
    ),
    "a developer's message": (
        supervised({"role": "developer", "content": "Be short."}, USER, ANSWER),
        "messages[0]: `role` of a message must be one of system, user, assistant",
        "write `system`",
    ),
    "a refusal": (
        supervised(USER, {"role": "assistant", "content": None, "refusal": "I cannot tell."}),
        "messages[1]: `refusal` is an answer that refuses",
        "write it as that text",
    ),
    "a call without its tool": (supervised(USER, CALLS), "call 1: a tool is called", "declare it as `tools`"),
    "two calls where one is allowed": (
        supervised(USER, CALLS | {"tool_calls": TWO_CALLS}, tools=[TOOL], parallel_tool_calls=False),
        "`parallel_tool_calls` is false",
        "put each into a turn of its own",
    ),
    "no answer": (supervised(SYSTEM, USER), "has no assistant turn", "add the answer to learn"),
    "equal outputs": (
        preference([ANSWER], [ANSWER]),
        "`preferred_output` and `non_preferred_output` are the same",
        "give two answers that differ",
    ),
    "a preference for supervised": (
        ("sft", preference([ANSWER], [OTHER])[1]),
        "`preferred_output` belongs to preference data",
        "set spec.mode to dpo",
    ),
    "a chat for dpo": (("dpo", supervised(USER, ANSWER)[1]), "`chosen` is missing", "set spec.mode to sft"),
    "a row of reinforcement": (
        supervised(USER, reference_answer="21"),
        "`reference_answer` beside messages is not part of what would be learned",
        "set spec.dataset.columns to {prompt: messages, output: reference_answer}",
    ),
    "a request of a batch": (
        ("sft", {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [USER]}}),
        "has none of the shapes of sft rows; it has custom_id, method, url, body",
        "{messages}",
    ),
}


def upload(root: Path, row: Row) -> Path:
    """Upload a file of which the second row is `row`, between two good ones of its kind, if there are such."""
    good = preference([ANSWER], [OTHER])[1] if "input" in row else supervised(USER, ANSWER)[1]
    good = good if good.keys() & row.keys() else row
    store = FileStore(root, file_bytes=2**20, total_bytes=2**20)
    with store.draft() as draft:
        draft.write("".join(f"{json.dumps(each)}\n" for each in (good, row, good)).encode())
        return store.content(draft.publish(filename="rows.jsonl"))


@pytest.mark.parametrize(("mode", "row"), LEARNED.values(), ids=LEARNED)
def test_what_is_learned(tmp_path: Path, mode: str, row: Row) -> None:
    report = check_dataset(_same_shape(tmp_path, row), form=MODES[mode].rows, tokenizer_dir=None, max_length=100)
    assert (report.kept, report.refused, report.ignored_fields) == (2, 0, [])


@pytest.mark.parametrize(("given", "rule", "fix"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_names_row_field_and_remedy(
    tmp_path: Path, given: tuple[str, Row], rule: str, fix: str
) -> None:
    mode, row = given
    path = upload(tmp_path, row)
    with pytest.raises(DatasetRefused) as refused:
        check_dataset(path, form=MODES[mode].rows, tokenizer_dir=None, max_length=100)
    said = [problem.in_words(SPEC_WORDS) for problem in refused.value.problems]
    (problem,) = (problem for problem in said if rule in f"{problem.where}: {problem.rule}")
    assert upload_path(path.parent.name) in problem.where
    assert "row 2" in problem.where or "rows 1, 2 and 3" in problem.where
    assert fix in problem.fix
    assert "Paris" not in str(problem), "no text of a row is in an error"


def _same_shape(root: Path, row: Row) -> Path:
    store = FileStore(root, file_bytes=2**20, total_bytes=2**20)
    with store.draft() as draft:
        draft.write(f"{json.dumps(row)}\n".encode() * 2)
        return store.content(draft.publish(filename="rows.jsonl"))
