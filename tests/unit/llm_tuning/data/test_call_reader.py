"""Calls in generated texts, read as each of TRL's templates writes them, and Mistral's and Llama 4's."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.call_forms import Call
from llm_tuning.data.call_reader import BrokenCall, CallReader, NotReadable, learn_calls, same_calls
from llm_tuning.data.chat import _compile

SPEC = importlib.util.find_spec("trl")
assert SPEC is not None
assert SPEC.origin is not None
OWN = Path(__file__).parents[3] / "support" / "call_templates"
"""As their publishers write calls: the rest of these templates is left out."""
TRL = Path(SPEC.origin).parent / "chat_templates"
STOPS = "<|im_end|> <|eot_id|> <end_of_turn> <turn|> <|return|> <|call|> <|eot|> </s> <|user|> <|observation|> <|end|>"
STOPS += " <|tool_response> <\uff5cend\u2581of\u2581sentence\uff5c>"
SEVERAL = (
    "deepseekv3_training",
    "diffusion_gemma",
    "gemma4",
    "gemma4_v2",
    "gemma4_v3",
    "gemma4_v4",
    "gemma4_v5",
    "glm4moe",
    "lfm2_v2",
    "lfm2_2_5_vl",
    "muse_glimmer",
    "nemotron_3_nano",
    "nemotron_3_super",
    "nemotron_3_ultra",
    "nemotron_3_5_lightning",
    "qwen2_5",
    "qwen3",
    "qwen3_instruct_2507",
    "qwen3_vl",
    "qwen3_5_think",
    "qwen3_5_nothink",
    "qwen3_6",
    "qwen3_8",
    "mistral_nemo",
    "mistral_small",
    "olmo3",
    "llama4",
)
ONE = ("llama3_1", "llama3_2", "gptoss")
"""An answer of theirs has one call at most."""
NO_CALLS = (
    "gemma",
    "gemma3",
    "phi3",
    "phi3_5",
    "llama3",
    "cohere",
    "cohere2",
    "deepseek_r1_distill",
    "lfm2",
    "qwen2_5_vl",
)
NO_TEXT_CALLS = ("deepseekv3", "idefics3", "llava_next", "smolvlm")
"""They take contents as parts alone, or arguments as text."""
NOT_READ = ("lfm2_2_5", "lfm2_2_5_v2", "parameter_lines")
PARAMETERS: dict[str, Any] = {
    "get_weather": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "units": {"type": "string", "enum": ["c", "f"]},
    },
    "plan.trip-2": {
        "stops": {"type": "array", "items": {"type": "object", "properties": {"at": {"type": "string"}}}},
        "price": {"type": "number"},
        "night": {"type": "boolean"},
        "more": {"type": "object"},
    },
    "now": {},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": properties, "required": []},
        },
    }
    for name, properties in PARAMETERS.items()
]
TRIP = {
    "more": {"x": {"y": [1, None, True]}},
    "night": False,
    "price": -1.5e3,
    "stops": [{"at": "a \"b\" 'c'"}, {"at": "d\te"}],
}
CALLS = [
    Call("get_weather", {"city": "Zürich, \u4e2d\u6587", "days": 3, "units": "c"}),
    Call("plan.trip-2", TRIP),
    Call("get_weather", {"city": "1200"}),
    Call("get_weather", {"city": "true", "days": 12}),
    Call("now"),
]


def render_of(text: str) -> Callable[..., str]:
    def render(
        messages: Sequence[Any], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        try:
            return _compile(text).render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                strftime_now=lambda _: "today",
                bos_token="<s>",
                eos_token="</s>",
            )
        except Exception as error:
            raise ValueError(str(error)) from None

    return render


@cache
def template(name: str) -> Callable[..., str]:
    own = OWN / f"{name}.jinja"
    return render_of((own if own.exists() else TRL / own.name).read_text())


@cache
def reader_of(name: str) -> CallReader:
    return learn_calls(template(name), STOPS.split())


@pytest.fixture(scope="module", params=[*SEVERAL, *ONE])
def name(request: pytest.FixtureRequest) -> str:
    """A template that writes calls; its tests run together, so that it is compiled once."""
    return str(request.param)


def generated(name: str, calls: Sequence[Call], content: str = "") -> str:
    """What a model that was trained on the template says for `calls`: its rendering up to the stop token."""
    functions = [
        {"type": "function", "id": f"id{i:07}", "function": {"name": c.name, "arguments": dict(c.arguments)}}
        for i, c in enumerate(calls)
    ]
    messages = [{"role": "user", "content": "q?"}]
    answer: dict[str, Any] = {"role": "assistant", "content": content}
    if functions:
        answer["tool_calls"] = functions
    prompt = template(name)(messages, tools=TOOLS, add_generation_prompt=True)
    whole = template(name)([*messages, answer], tools=TOOLS)
    text = whole[len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))) :]
    last = text.rindex(calls[-1].name if calls else content)
    cut = min((at for stop in STOPS.split() if (at := text.find(stop, last)) >= 0), default=len(text))
    return text[:cut]


def test_calls_are_read_back_with_their_values(name: str) -> None:
    for call in CALLS:
        read = reader_of(name).read(generated(name, [call]), TOOLS)
        assert same_calls(read, [call]), (read, call)
    if name in SEVERAL:
        assert same_calls(reader_of(name).read(generated(name, CALLS), TOOLS), CALLS)


def test_an_answer_without_a_call_has_none(name: str) -> None:
    for content in ("It is 42.", "Use {braces} and [brackets].", '{"a": 1}', "get_weather was asked", "now()"):
        assert reader_of(name).read(generated(name, [], content), TOOLS) == []


def test_what_is_written_otherwise_gives_no_call_that_is_not_there(name: str) -> None:
    """Cut anywhere, or with a character changed, a text gives the call, another one that it holds, or none."""
    reader, call = reader_of(name), CALLS[0]
    text, chance = generated(name, [call]), random.Random(0)
    start = text.rindex(call.name)
    for end in range(start, len(text) - 1):
        try:
            read = reader.read(text[:end], TOOLS)
        except BrokenCall:
            continue
        assert read == [] or (same_calls(read, [call]) and reader.close.strip() in text[:end])
    for _ in range(60):
        at = chance.randrange(len(text))
        changed = text[:at] + chance.choice("{}[]()\"'<>=, \nx\\") + text[at + chance.randrange(2) :]
        try:
            reader.read(changed, TOOLS)
        except BrokenCall:
            continue


@pytest.mark.parametrize("name", NO_CALLS)
def test_a_template_without_calls_has_no_reader(name: str) -> None:
    with pytest.raises(NotReadable, match="calls of tools"):
        reader_of(name)


def test_every_template_of_trl_is_tried() -> None:
    tried = {*SEVERAL, *ONE, *NO_CALLS, *NOT_READ, *NO_TEXT_CALLS}
    assert {path.stem.removesuffix("_training") for path in TRL.glob("*.jinja")} <= tried


@pytest.mark.parametrize("name", NO_TEXT_CALLS)
def test_a_template_that_does_not_take_such_messages_has_no_reader(name: str) -> None:
    with pytest.raises(NotReadable, match="does not take calls"):
        reader_of(name)


@pytest.mark.parametrize("name", NOT_READ)
def test_a_form_that_cannot_be_read_back_has_no_reader(name: str) -> None:
    """LFM2.5 writes line ends into Python's quotes as they are; the other one ends a value nowhere."""
    with pytest.raises(NotReadable):
        reader_of(name)


def test_a_template_that_drops_values_has_no_reader() -> None:
    drops = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<c>" + (
        '{"name": {{ c.function.name | tojson }}, "arguments": {% if c.function.arguments | length > 2 %}{}{% else %}'
        "{{ c.function.arguments | tojson }}{% endif %}}</c>{% endfor %}</s>{% endfor %}"
    )
    with pytest.raises(NotReadable, match="cannot be read back"):
        learn_calls(render_of(drops), ["</s>"])


def test_white_space_content_and_reasoning_do_not_matter() -> None:
    body = json.dumps({"arguments": {"days": 3.0, "city": "Oslo"}, "name": "get_weather"}, indent=2)
    want = [Call("get_weather", {"city": "Oslo", "days": 3})]
    for text in (f"<tool_call>{body}</tool_call>", f"Let me see.\n\n<tool_call>\n\n{body} \n</tool_call>\n And so on."):
        assert same_calls(reader_of("qwen3").read(text, TOOLS), want)
    thought = "<think>\nMaybe <tool_call>\nis it.\n</think>\n\n"
    assert same_calls(reader_of("qwen3").read(f"{thought}<tool_call>\n{body}\n</tool_call>", TOOLS), want)
    assert reader_of("qwen3").read(f"{thought}No.", TOOLS) == []
    coder = "<tool_call><function=get_weather><parameter=city>Oslo</parameter><parameter=days>3</parameter>"
    coder += "</function></tool_call>"
    assert same_calls(reader_of("qwen3_5_think").read(coder, TOOLS), want)


def test_gpt_oss_may_name_the_function_in_the_channel() -> None:
    text = (
        "<|channel|>analysis<|message|>Weather.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    )
    text += '<|constrain|>json<|message|>{"city": "Oslo"}'
    assert reader_of("gptoss").read(text, TOOLS) == [Call("get_weather", {"city": "Oslo"})]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "now", "arguments": {}}',
        '<tool_call>\n{"name": "now", "arguments": "{}"}\n</tool_call>',
        '<tool_call>\n{"name": "now"}\n</tool_call>',
        '<tool_call>\n{"name": "now", "parameters": {}}\n</tool_call>',
        "<tool_call>\nnow()\n</tool_call>",
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": ',
    ],
)
def test_a_call_that_goes_wrong_is_said(text: str) -> None:
    with pytest.raises(BrokenCall):
        reader_of("qwen3").read(text, TOOLS)


def test_several_calls_are_a_list_in_order() -> None:
    two = CALLS[:2]
    assert not same_calls(two, two[::-1])
    assert not same_calls(two, two[:1])
    assert same_calls([Call("f", {"a": 1, "b": [1.0]})], [Call("f", {"b": [1], "a": 1.0})])
    assert not same_calls([Call("f", {"a": 1})], [Call("f", {"a": True})])
    assert not same_calls([Call("f", {"a": 1})], [Call("f", {"a": "1"})])
    assert not same_calls([Call("f", {"a": None})], [Call("f", {})])
