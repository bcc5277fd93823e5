"""Reasoning between tags in the text of an answer: which are refused, with and without a base."""

from __future__ import annotations

import pytest

from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.reasoning_tags import refuse_reasoning_tags
from tests.support.other_rows import assistant, user

ALWAYS = ["<|begin_of_thought|>a<|end_of_thought|>b", "<thinking>a</thinking>b", " <reasoning>\na</reasoning>b",
          "<scratchpad>a</scratchpad>b"]  # fmt: skip
OF_MODELS = ["[THINK]a[/THINK]b", "<seed:think>a</seed:think>b", "\u25c1think\u25b7a\u25c1/think\u25b7b",
             "<|START_THINKING|>a<|END_THINKING|>b"]  # fmt: skip
FINE = ["<think>a</think>b", "The tag is <thinking>a</thinking>", "<thinking>a", "<b>a</b>", "[1, 2]", "plain"]


@pytest.mark.parametrize("text", ALWAYS)
def test_tags_of_no_base_are_refused_with_and_without_one(text: str) -> None:
    messages = [user("q"), assistant(text)]
    for is_known in (None, lambda tag: False):
        with pytest.raises(
            RowFault, match=r"message 2: the answer has its reasoning between .* learned as words"
        ) as one:
            refuse_reasoning_tags(messages, is_known=is_known)
        assert one.value.reason is Reason.REASONING_IN_TEXT
        assert "`reasoning_content`" in one.value.fix
    refuse_reasoning_tags([user(text)])


@pytest.mark.parametrize("text", OF_MODELS)
def test_tags_of_another_model_are_refused_where_the_base_is_known(text: str) -> None:
    messages = [user("q"), assistant(text)]
    with pytest.raises(RowFault, match="learned as words"):
        refuse_reasoning_tags(messages, is_known=lambda tag: False)
    refuse_reasoning_tags(messages, is_known=text.startswith)
    refuse_reasoning_tags(messages)


@pytest.mark.parametrize("text", FINE)
def test_other_texts_are_learned(text: str) -> None:
    refuse_reasoning_tags([user("q"), assistant(text)], is_known=lambda tag: False)


def test_a_format_that_the_row_asks_for_is_meant() -> None:
    answer = assistant("<reasoning>a</reasoning><answer>b</answer>")
    refuse_reasoning_tags([{"role": "system", "content": "Write <reasoning>...</reasoning>"}, user("q"), answer])
    with pytest.raises(RowFault, match="learned as words"):
        refuse_reasoning_tags([user("q"), answer, user("Write <reasoning>")])
    thought = assistant("<|begin_of_thought|>a<|end_of_thought|>b")
    with pytest.raises(RowFault, match="learned as words"):
        refuse_reasoning_tags([user("<|begin_of_thought|>"), thought])
