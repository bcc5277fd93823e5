"""Which held-out answers are asked for again, and what becomes of those that are generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_tuning.data.call_reader import NotReadable, recorded_calls, same_calls
from llm_tuning.data.call_sample import (
    MAX_CALLS,
    MAX_WORDS,
    ROOM,
    CallSample,
    Counted,
    ReasoningShown,
    fit_tools,
    sample_calls,
)
from llm_tuning.data.rows import Conversation
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.data.tokens import RowTokenizer
from tests.support.tool_rows import TOOLS, make_tool_tokenizer, requests, write_conversations, write_tool_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tool_tokenizer(tmp_path_factory.mktemp("base") / "base")


def tokenizer_of(base: Path) -> RowTokenizer:
    tokenizer = RowTokenizer.load(base)
    assert tokenizer is not None
    return tokenizer


def sample_of(base: Path, rows: TokenRows, **options: Any) -> CallSample:
    sample = sample_calls(rows, np.arange(len(rows)), tokenizer_of(base), **options)
    assert sample is not None
    return sample


def words(answer: str, *, tools: bool = True) -> Conversation:
    messages = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": answer}]
    return Conversation(messages, tools=TOOLS if tools else None)


def test_recorded_calls_are_asked_for_behind_the_prompt_of_a_server(base: Path, tmp_path: Path) -> None:
    chosen = requests(held_out=True)
    rows = write_tool_rows(tmp_path / "rows", base, chosen)
    sample, tokenizer = sample_of(base, rows), tokenizer_of(base)
    assert len(sample.asked) == len(chosen)
    assert sample.not_read == 0
    prompts = {
        tokenizer.template.render(each.messages[:1], tools=TOOLS, add_generation_prompt=True): each for each in chosen
    }
    for asked in sample.asked:
        request = prompts.pop(tokenizer.text(asked.prompt.tolist()))
        assert same_calls(asked.recorded, recorded_calls(request.messages[1]))
        answer = tokenizer.template.render(request.messages, tools=TOOLS)
        behind = tokenizer.ids([answer])[0][len(asked.prompt) :]
        assert asked.max_tokens in (len(behind) + ROOM, len(behind) + ROOM - 1)  # a line end is behind the stop
        assert sample.read(asked, behind) == Counted(True, True, True, True)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            '<tool_call>\n{"arguments": {"times": 1, "thing": "X"}, "name": "N"}\n</tool_call>',
            Counted(True, True, True, True),
        ),
        (
            '<tool_call>\n{"name": "N", "arguments": {"thing": "X", "times": 2}}\n</tool_call>',
            Counted(True, True, True),
        ),
        ('<tool_call>\n{"name": "N", "arguments": {"thing": "X", "times": "1"}}\n</tool_call>', Counted(True, True)),
        ('<tool_call>\n{"name": "N", "arguments": {"thing": "X"}}\n</tool_call>', Counted(True, True)),
        ('<tool_call>\n{"name": "delta", "arguments": {"thing": "X", "times": 1}}\n</tool_call>', Counted(True, True)),
        ('<tool_call>\n{"name": "N", "arguments": {"thing": "X"', Counted(True)),
        ("I would call N for the X.", Counted()),
        ("", Counted()),
    ],
)
def test_an_answer_is_read_with_its_tools(base: Path, tmp_path: Path, text: str, want: Counted) -> None:
    rows = write_tool_rows(tmp_path / "rows", base, requests(held_out=True)[:1])
    sample = sample_of(base, rows)
    (asked,) = sample.asked
    (call,) = asked.recorded
    text = text.replace('"N"', json.dumps(call.name)).replace('"X"', json.dumps(call.arguments["thing"]))
    (ids,) = sample.tokenizer.ids([text])
    assert sample.read(asked, ids) == want
    assert sample.read(asked, [*ids, *sample.tokenizer.ids(["<|im_end|>\nand more"])[0]]) == want


def test_calls_come_first_and_words_where_there_are_tools(base: Path, tmp_path: Path) -> None:
    calls = [Conversation(each.messages, tools=TOOLS) for each in requests()] * 2
    rows = write_conversations(tmp_path / "many", base, [words("A helper.") for _ in range(40)] + calls)
    sample = sample_of(base, rows)
    assert sum(bool(asked.recorded) for asked in sample.asked) == MAX_CALLS
    assert 0 < sum(not asked.recorded for asked in sample.asked) <= MAX_WORDS
    few = write_conversations(tmp_path / "few", base, [words("A helper."), words("Me.", tools=False), calls[0]])
    assert sorted(len(asked.recorded) for asked in sample_of(base, few).asked) == [0, 1]
    none = write_conversations(tmp_path / "none", base, [words("A helper.", tools=False)] * 3)
    assert sample_calls(none, np.arange(3), tokenizer_of(base)) is None


def test_a_call_amid_a_conversation_is_asked_for_at_its_place(base: Path, tmp_path: Path) -> None:
    first, second = requests(held_out=True)[:2]
    result = {"role": "tool", "content": "done"}
    messages = [*first.messages, result, {"role": "assistant", "content": "It is done."}]
    rows = write_conversations(
        tmp_path / "rows", base, [Conversation([*messages, *second.messages], tools=TOOLS, learn_from=0)]
    )
    sample = sample_of(base, rows)
    (asked,) = sample.asked
    assert any(same_calls(asked.recorded, recorded_calls(each.messages[1])) for each in (first, second))
    assert sample.tokenizer.text(asked.prompt.tolist()).endswith("<|im_start|>assistant\n")


def test_answers_behind_reasoning_that_is_shown_are_counted_and_not_asked_for(base: Path, tmp_path: Path) -> None:
    each = requests(held_out=True)[0]
    asked, answer = each.messages
    conversation = Conversation([asked, answer | {"reasoning_content": "I call it."}], tools=TOOLS)
    learned = write_conversations(tmp_path / "learned", base, [conversation])
    (one,) = sample_of(base, learned).asked
    assert sample_of(base, learned).tokenizer.text(one.prompt.tolist()).endswith("<|im_start|>assistant\n")
    shown = write_conversations(tmp_path / "shown", base, [conversation], learn_reasoning=False)
    with pytest.raises(ReasoningShown, match=r"training\.learnReasoning is false"):
        sample_calls(shown, np.arange(1), tokenizer_of(base))


def test_answers_that_the_model_should_not_give_are_not_asked_for(base: Path, tmp_path: Path) -> None:
    conversations = [Conversation(each.messages, tools=TOOLS) for each in requests(held_out=True)[:4]]
    rows = write_conversations(tmp_path / "rows", base, conversations, numbers=[1.0, 0.0, 0.0, 1.0])
    assert len(sample_of(base, rows, is_wanted=lambda number, sequence: number > 0).asked) == 2
    assert sample_calls(rows, np.arange(4), tokenizer_of(base), lambda number, sequence: sequence == 1) is None


def test_a_template_whose_calls_cannot_be_read_back_has_no_sample(base: Path, tmp_path: Path) -> None:
    rows = write_tool_rows(tmp_path / "rows", base, requests(held_out=True))
    tokenizer = tokenizer_of(base)
    text = "{% for m in messages %}{{ m.content }}{{ m.tool_calls }}<|im_end|>{% endfor %}"
    tokenizer.template = type(tokenizer.template)(text, "test", {})
    with pytest.raises(NotReadable):
        sample_calls(rows, np.arange(len(rows)), tokenizer)


def test_calls_fit_their_tools_by_name_and_schema() -> None:
    message = requests()[0].messages[1]
    assert fit_tools(recorded_calls(message), TOOLS)
    assert not fit_tools(recorded_calls(message), TOOLS[1:])
    bare = [{"type": "function", "function": {"name": "alpha"}}]
    assert not fit_tools(recorded_calls(message), bare), "a tool without parameters takes none"
