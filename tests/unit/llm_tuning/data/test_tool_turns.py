"""Calls and reasoning are learned as the server asks for them, results are not: all of TRL's templates.

What a template cannot say refuses the row; `docs/templates.json` records what each one can.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.chat import ChatTemplate
from llm_tuning.data.faults import Fact, Reason, RowFault
from llm_tuning.data.messages import convert_messages
from llm_tuning.data.report import Report, ToolReport
from llm_tuning.data.row_tools import check_results
from llm_tuning.data.rows import Conversation, Example
from llm_tuning.data.splitting import PromptGroups
from llm_tuning.data.tally import Tally
from llm_tuning.data.tokenised import TokenisedRow
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.modes import MODES
from tests.support.chat_templates import (
    NO_TEXT_CHATS,
    TEMPLATES,
    TOKENS,
    learned_runs,
    row_of,
    texts_learned,
    tokenizer_of,
)
from tests.support.template_trial import (
    CHATS,
    PARIS,
    QUESTION,
    RECORD,
    TOOLS,
    call,
    calls,
    result,
    say,
    try_template,
)
from tests.support.tokenizers import chat_level

TRIED = [name for name in TEMPLATES if not name.startswith(NO_TEXT_CHATS)]


@pytest.mark.parametrize("name", TRIED)
def test_what_is_learned_is_what_a_server_asks_for(name: str) -> None:
    """Each prompt is rendered with the tools and tokenised alone; behind it come calls, reasoning and text."""
    tokenizer, encoder = tokenizer_of(name)
    for chat in CHATS.values():
        row = row_of(tokenizer, chat.messages, tools=chat.tools)
        if isinstance(row, RowFault):
            assert row.reason is Reason.TEMPLATE_REFUSES
            continue
        served = {
            index: encoder.encode(
                tokenizer.template.render(chat.messages[:index], tools=chat.tools, add_generation_prompt=True),
                add_special_tokens=False,
            ).ids
            for index, message in enumerate(chat.messages)
            if message["role"] == "assistant"
        }
        found = []
        for sequence in row.sequences:
            ids = sequence.input_ids.tolist()
            assert sequence.messages is not None
            assert ids[: sequence.prompt_tokens] == served[len(sequence.messages) - 1]
            assert sequence.tools == chat.tools
            found += [
                next(index for index, prompt in served.items() if prompt == ids[:start])
                for start, _ in learned_runs(sequence)
            ]
        assert sorted(found) == list(served), "every answer once"
        for index, text in zip(found, texts_learned(row, encoder), strict=True):
            message = chat.messages[index]
            assert message["content"] in text
            assert message.get("reasoning_content", "") in text
            for each in message.get("tool_calls", ()):
                assert each["function"]["name"] in text
                assert each["function"]["arguments"]["city"] in text
            assert not any(other["content"] in text for other in chat.messages if other["role"] == "tool")


@pytest.mark.parametrize("name", TRIED)
def test_the_record_says_what_each_template_can(name: str) -> None:
    """`python -m tests.support.template_trial` writes it anew."""
    assert json.loads(RECORD.read_text())["templates"][name] == try_template(name)


def test_the_record_has_enough_families_and_no_other_template() -> None:
    record = json.loads(RECORD.read_text())["templates"]
    assert record.keys() == set(TRIED)
    assert len({tried["family"] for tried in record.values() if "call" in tried["learned"]}) >= 5
    assert len({tried["family"] for tried in record.values()}) >= 10


LEARNED = {
    "qwen3": [
        '<think>\nI have to look.\n</think>\n\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Paris", "unit": "kelvin"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nIt is warm.<|im_end|>",
    ],
    "llama3_1": ['{"name": "get_weather", "parameters": {"city": "Paris", "unit": "kelvin"}}<|eot_id|>'],
    "glm4moe": [
        "\n<think>I have to look.</think>\n<tool_call>get_weather\n"
        "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>kelvin</arg_value>\n</tool_call><|observation|>",
        "\n<think></think>\nIt is warm.<|user|>",
    ],
    "gptoss": [
        "<|channel|>analysis<|message|>I have to look.<|end|><|start|>assistant to=functions.get_weather"
        '<|channel|>commentary json<|message|>{"city": "Paris", "unit": "kelvin"}<|call|>',
        "<|channel|>final<|message|>It is warm.<|return|>",
    ],
    "gemma4_v5": [
        "<|channel>thought\nI have to look.\n<channel|>"
        '<|tool_call>call:get_weather{city:<|"|>Paris<|"|>,unit:<|"|>kelvin<|"|>}<tool_call|><|tool_response>',
        "It is warm.<turn|>",
    ],
    "qwen3_5_think": [
        "I have to look.\n</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=unit>\nkelvin\n</parameter>\n</function>\n</tool_call><|im_end|>",
        "\n</think>\n\nIt is warm.<|im_end|>",
    ],
}


@pytest.mark.parametrize(("name", "texts"), LEARNED.items())
def test_a_call_with_its_reasoning_and_then_the_answer(name: str, texts: list[str]) -> None:
    tokenizer, encoder = tokenizer_of(name)
    reasoned = {} if name == "llama3_1" else {"reasoning_content": "I have to look."}
    messages = [QUESTION, calls(PARIS, **reasoned), result("42"), say("It is warm.")]
    row = row_of(tokenizer, messages if reasoned else messages[:2], tools=TOOLS)
    assert isinstance(row, TokenisedRow), row
    assert texts_learned(row, encoder) == texts
    assert all(sequence.learns_end for sequence in row.sequences)


def test_tools_are_shown_in_the_form_that_a_server_gives_them() -> None:
    tokenizer, encoder = tokenizer_of("qwen3")
    row = row_of(tokenizer, [QUESTION, calls(PARIS)], tools=TOOLS)
    assert isinstance(row, TokenisedRow)
    text = encoder.decode(row.sequences[0].input_ids.tolist(), skip_special_tokens=False)
    assert f"<tools>\n{json.dumps(TOOLS[0])}\n</tools>" in text


AFTER = [result("42"), say("It is warm.")]
LOSSES = [
    ("phi3", CHATS["call"].messages, TOOLS, "leaves calls of tools out"),
    ("gemma3", [QUESTION, say("It is warm.")], TOOLS, "leaves the row's tools out"),
    ("llama3", [QUESTION, say("It is warm.", reasoning_content="July.")], None, "leaves reasoning of the answer out"),
    ("gptoss", CHATS["parallel calls"].messages, TOOLS, "writes one call of a turn, and leaves the others out"),
    ("gptoss", CHATS["text and call"].messages, TOOLS, "writes the text beside a call as reasoning"),
    ("gptoss", [QUESTION, calls(PARIS, content="Let me look."), *AFTER], TOOLS, "the text beside a call as reasoning"),
    ("llama3_1", CHATS["parallel calls"].messages, TOOLS, "only supports single tool-calls at once"),
    ("llama3_1", CHATS["text and call"].messages, TOOLS, "leaves the text beside a call out"),
    ("gemma4_v2", CHATS["reasoning and call"].messages, TOOLS, "leaves reasoning of the answer out"),
    ("qwen3_5_nothink", CHATS["reasoning and call"].messages, TOOLS, "otherwise than its own generation prompt"),
    ("deepseekv3", CHATS["call"].messages, TOOLS, "does not take these messages"),
]


@pytest.mark.parametrize(("name", "messages", "tools", "rule"), LOSSES)
def test_what_a_template_loses_refuses_the_row(
    name: str, messages: list[dict[str, Any]], tools: Any, rule: str
) -> None:
    fault = row_of(tokenizer_of(name)[0], messages, tools=tools)
    assert isinstance(fault, RowFault)
    assert fault.reason is Reason.TEMPLATE_REFUSES
    assert rule in fault.rule


FIXES = [
    ("llama3_1", "parallel calls", "put each call into a turn of its own with its result behind it"),
    ("gptoss", "parallel calls", "put each call into a turn of its own with its result behind it"),
    ("llama3_1", "text and call", "remove that text, or use a base whose template writes both"),
    ("gptoss", "text and call", "give it as `reasoning_content` of the turn"),
    ("deepseekv3", "call", "use a base whose template has tools"),
]


@pytest.mark.parametrize(("name", "chat", "fix"), FIXES)
def test_what_to_do_about_it_is_said(name: str, chat: str, fix: str) -> None:
    fault = row_of(tokenizer_of(name)[0], CHATS[chat].messages, tools=TOOLS)
    assert isinstance(fault, RowFault)
    assert fix in fault.fix


SYSTEM = {"role": "system", "content": "Be brief."}
SERVED = [
    ("gptoss", [QUESTION, calls(PARIS)], TOOLS, False),
    ("gptoss", [SYSTEM, QUESTION, calls(PARIS)], TOOLS, False),
    ("gptoss", [SYSTEM, QUESTION, say("It is warm.")], None, True),
    ("gptoss", [QUESTION, calls(PARIS), *AFTER], TOOLS, True),
    ("qwen3", [QUESTION, calls(PARIS), *AFTER], TOOLS, False),
]


@pytest.mark.parametrize(("name", "messages", "tools", "differs"), SERVED)
def test_prompts_that_vllm_writes_without_the_template_are_named(
    name: str, messages: list[dict[str, Any]], tools: Any, differs: bool
) -> None:
    row = row_of(tokenizer_of(name)[0], messages, tools=tools)
    assert isinstance(row, TokenisedRow)
    assert (Fact.SERVED_OTHERWISE in row.facts) is differs


def small(text: str) -> RowTokenizer:
    return RowTokenizer(chat_level(), ChatTemplate(text, "t", TOKENS), stop_ids=[])


WHOLE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PARTS = {
    "{{ t | tojson }}": ("{{ t.function.name }} {{ t.function.parameters }}", "leaves a part of the row's tools out"),
    "{{ t | tojson }}{% endfor": ("{{ t.function.name }}{{ t.function.description }}{% endfor", "a part of the row's"),
    "{{ c.function | tojson }}": ("{{ c.function.name }}", "leaves an argument of a call out"),
    "{{ m.content }}": ("{{ m.content if m.role != 'tool' }}", "leaves a tool's result out"),
    "{% for c in m.tool_calls or [] %}": ("{% for c in (m.tool_calls or [])[:1] %}", "leaves the others out"),
}


WHOSE = {"tool_call_id": True, "name": False, "role": False}


@pytest.mark.parametrize(("written", "says_whose"), WHOSE.items())
def test_results_in_another_order_than_their_calls_need_a_template_that_says_whose_they_are(
    written: str, says_whose: bool
) -> None:
    """Both calls are of one tool, so that its name does not tell either."""
    tokenizer = small(WHOLE.replace("{{ m.content }}", f"{{{{ m.content }}}}{{{{ m.{written} if m.role == 'tool' }}}}"))
    question, calling, first, second, answer = CHATS["parallel calls"].messages
    assert isinstance(row_of(tokenizer, [question, calling, first, second, answer], tools=TOOLS), TokenisedRow)
    found = row_of(tokenizer, [question, calling, second, first, answer], tools=TOOLS)
    assert isinstance(found, TokenisedRow if says_whose else RowFault), found
    if isinstance(found, RowFault):
        assert (found.at, found.fix) == ("message 3", "put them into the order of the calls")
        assert "does not write which call each answers" in found.rule


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "lfm2_2_5", "nemotron_3_nano"])
def test_templates_of_real_families_do_not_say_which_call_a_result_answers(name: str) -> None:
    question, calling, first, second, answer = CHATS["parallel calls"].messages
    fault = row_of(tokenizer_of(name)[0], [question, calling, second, first, answer], tools=TOOLS)
    assert isinstance(fault, RowFault)
    assert fault.reason is Reason.TEMPLATE_REFUSES


def test_a_tool_without_a_description_is_named_where_a_template_needs_one() -> None:
    bare = {"type": "function", "function": TOOLS[0]["function"] | {"description": None}}
    fault = row_of(tokenizer_of("gptoss")[0], CHATS["call"].messages, tools=[bare])
    assert isinstance(fault, RowFault)
    assert fault.fix.startswith("give each tool a `description`")


@pytest.mark.parametrize(("whole", "part"), PARTS.items())
def test_each_part_that_is_lost_is_named(whole: str, part: tuple[str, str]) -> None:
    messages = CHATS["parallel calls"].messages
    assert isinstance(row_of(small(WHOLE), messages, tools=TOOLS), TokenisedRow)
    fault = row_of(small(WHOLE.replace(whole, part[0])), messages, tools=TOOLS)
    assert isinstance(fault, RowFault)
    assert part[1] in fault.rule


def test_values_of_any_kind_are_found_in_what_a_template_makes_of_them() -> None:
    odd = {"city": 'a "quoted"\n\u00e9 line', "n": 1.5, "flags": [True, None], "more": {"\u4e2d": -3}}
    messages = [QUESTION, calls(call(**odd)), result('{"a": "b"}'), say("It is warm.")]
    for name in ("qwen3", "llama3_1", "glm4moe", "gptoss", "qwen3_5_think", "gemma4_v5", "lfm2_2_5"):
        row = row_of(tokenizer_of(name)[0], messages, tools=TOOLS)
        assert isinstance(row, TokenisedRow), (name, row)


MASKED = {
    "qwen3": ("<think>\nIt is July.\n</think>\n\n", "It is warm.<|im_end|>"),
    "qwen3_5_think": ("<think>\nIt is July.\n</think>\n\n", "It is warm.<|im_end|>"),
    "glm4moe": ("\n<think>It is July.</think>\n", "It is warm.<|user|>"),
    "deepseek_r1_distill": ("It is July.\n</think>\n\n", "It is warm.<\uff5cend\u2581of\u2581sentence\uff5c>"),
}


@pytest.mark.parametrize(("name", "want"), MASKED.items())
@pytest.mark.parametrize("in_text", [False, True])
def test_reasoning_that_is_not_learned_is_shown_with_the_prompt(
    name: str, want: tuple[str, str], in_text: bool
) -> None:
    tokenizer, encoder = tokenizer_of(name, "all", False)
    answer = say("It is warm.", reasoning_content="It is July.")
    if in_text:
        answer = say("<think>\nIt is July.\n</think>\n\nIt is warm.")
    row = row_of(tokenizer, [QUESTION, answer])
    assert isinstance(row, TokenisedRow), row
    assert texts_learned(row, encoder) == [want[1]]
    (sequence,) = row.sequences
    assert sequence.prompt_tokens == 0, "no server renders it from messages alone"
    (start, _) = learned_runs(sequence)[0]
    shown = encoder.decode(sequence.input_ids[:start].tolist(), skip_special_tokens=False)
    assert shown.endswith(want[0])
    without = row_of(tokenizer, [QUESTION, say("It is warm.")])
    learning = row_of(tokenizer_of(name)[0], [QUESTION, say("It is warm.")])
    assert isinstance(without, TokenisedRow)
    assert isinstance(learning, TokenisedRow)
    assert texts_learned(without, encoder) == texts_learned(learning, encoder), "no reasoning: as ever"


def test_reasoning_whose_end_is_not_sure_cannot_be_left_out() -> None:
    for name in ("gptoss", "gemma4_v5"):
        fault = row_of(tokenizer_of(name, "all", False)[0], [QUESTION, say("Warm.", reasoning_content="It is July.")])
        assert isinstance(fault, RowFault)
        assert "reasoning is not to be learned" in fault.rule


def test_a_row_is_shown_as_it_is_rendered_with_the_calls_marked() -> None:
    tokenizer, _ = tokenizer_of("qwen2_5")
    chat = CHATS["result"]
    (shown,) = tokenizer.shown(Conversation(chat.messages, tools=chat.tools))
    text, spans = shown.text, shown.spans
    marked = [text[start:end] for start, end in spans]
    assert any("<tool_call>" in piece for piece in ["".join(marked)])
    assert "42" in text
    assert "42" not in "".join(marked)
    assert json.dumps(TOOLS[0]) in text


def test_special_tokens_in_reasoning_are_said() -> None:
    row = row_of(tokenizer_of("qwen3")[0], [QUESTION, say("Warm.", reasoning_content="a <|endoftext|> b")])
    assert isinstance(row, TokenisedRow)
    assert Fact.SPECIAL_TOKENS in row.facts


def test_the_record_lies_with_the_pages() -> None:
    assert RECORD.parent == Path(__file__).parents[4] / "docs"


def test_the_report_counts_tools_calls_and_reasoning() -> None:
    report = Report(path="rows.jsonl", mode="sft")
    tally = Tally(MODES["sft"].rows, 100, with_tokens=False, prompts=PromptGroups())
    thinks = Conversation([QUESTION, say("<think>a</think>b")])
    chats = [Conversation(chat.messages, tools=chat.tools) for chat in CHATS.values()]
    pair = (chats[0], Conversation([QUESTION, say("b")], tools=TOOLS))
    for number, sequences in enumerate([*((chat,) for chat in chats), (thinks,), pair]):
        tally.keep(Example(number, sequences), None)
    tally.write(report)
    assert report.tools == ToolReport(declaring=6, calling=6, calls=7, several_at_once=1, reasoning=3)
    assert (
        "Tools: 6 rows declare tools, 6 have 7 calls, 1 of them several in a turn; 3 rows have reasoning"
        in report.summary()
    )
    assert "Tools" not in Report(path="rows.jsonl", mode="sft").summary()


def test_calls_of_ms_swift_belong_to_the_turn_before_them() -> None:
    call = '{"name": "find", "arguments": {"q": "x"}}'
    turns = convert_messages(
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "I look."},
                {"role": "tool_call", "content": call},
                {"role": "tool_call", "content": call},
                {"role": "tool_response", "content": "1"},
                {"role": "tool_response", "content": "2"},
                {"role": "tool_call", "content": call},
                {"role": "tool_response", "content": "3"},
                {"role": "assistant", "content": "Done.", "loss": False},
            ]
        },
        "messages",
    )
    roles = [message["role"] for message in turns.messages]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "tool", "assistant"]
    assert turns.messages[1]["content"] == "I look."
    assert [len(message.get("tool_calls", ())) for message in turns.messages] == [0, 2, 0, 0, 1, 0, 0]
    assert turns.flags == {6: False}, "counted in the turns that there are"
    check_results(turns.messages)
