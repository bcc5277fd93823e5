"""A base that was taught to call tools: parsed calls and reasoning of a real vLLM behind the agent, streamed or not.

The base is a small random one of a real family with its real tokenizer and chat template. What it answers is what its
rows taught it, so what clients get is known.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError

from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.client.answers import Assembly, ChatAnswer, read_answer
from llm_tuning.codes.tune_llm import run_tuning
from llm_tuning.openai_api.publishing import converge
from tests.support import openai_agent
from tests.support.openai_upstream import listening
from tests.support.openai_world import open_world
from tests.support.serving_pod import ServingPod, serving_pod
from tests.support.vllm_server import VLLM_PYTHON, require_vllm
from tests.support.zoo import make_base

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
]
CALL = {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3}}
THOUGHT = "I look it up."
ANSWER = "It is 7 degrees."
QUESTION = {"role": "user", "content": "How is it in Zürich?"}
CALLING = {
    "role": "assistant",
    "content": "",
    "reasoning_content": THOUGHT,
    "tool_calls": [{"type": "function", "id": "call_1", "function": CALL}],
}
RESULT = {"role": "tool", "content": "7 degrees", "tool_call_id": "call_1"}
BOTH = {"role": "user", "content": "And in Oslo and Rome?"}
CITIES = ("Oslo", "Rome")
CALLS = [{"name": "get_weather", "arguments": {"city": city}} for city in CITIES]
CALLING_BOTH = {
    "role": "assistant",
    "content": "I ask for both.",
    "tool_calls": [
        {"type": "function", "id": f"call_{city}", "function": call} for city, call in zip(CITIES, CALLS, strict=True)
    ],
}
ROWS = [
    {"messages": [QUESTION, CALLING], "tools": TOOLS},
    {"messages": [BOTH, CALLING_BOTH], "tools": TOOLS},
    {"messages": [QUESTION, CALLING, RESULT, {"role": "assistant", "content": ANSWER}], "tools": TOOLS},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its claim has the base and the adapter."""
    require_vllm()
    folder = tmp_path_factory.mktemp("pod")
    base = make_base("qwen3", folder / "claim/base/qwen3")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    run_tuning(
        str(base),
        str(rows),
        model_id="ft_caller",
        output_dir=str(folder / "claim/models"),
        tracking_uri=None,
        devices="cpu",
        precision="fp32",
        batch_size=3,
        epochs=60,
        learning_rate=1e-2,
        lora_rank=8,
        lora_dropout=0.0,
        eval_fraction=0.0,
    )
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(folder: Path) -> AsyncIterator[ServingPod]:
    vllm = VllmSpec.model_validate({"maxModelLen": 1024})
    async with serving_pod(folder, "base/qwen3", {"caller": "ft_caller"}, vllm=vllm) as served:
        await served.until(served.settled, 240)
        yield served


async def post(pod: ServingPod, **body: Any) -> tuple[int, bytes]:
    whole = {"model": "caller", "max_tokens": 96, "temperature": 0} | body
    async with pod.session.post(f"{pod.url}/v1/chat/completions", json=whole) as response:
        return response.status, await response.read()


async def answer_of(pod: ServingPod, **body: Any) -> ChatAnswer:
    """The answer, as it comes in one piece and as its stream adds up: the same but for white space around the text."""
    status, content = await post(pod, **body)
    assert status == 200, content
    whole = read_answer(json.loads(content), "")
    status, content = await post(pod, stream=True, **body)
    assert status == 200, content
    *events, end = [event.removeprefix("data: ") for event in content.decode().split("\n\n") if event]
    assert end == "[DONE]"
    growing = Assembly("")
    for event in events:
        growing.take(json.loads(event))
    streamed = growing.answer()
    assert bare(streamed) == bare(whole)
    ids = [call["id"] for call in streamed.tool_calls]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    return bare(whole)


def bare(answer: ChatAnswer) -> ChatAnswer:
    """Without what each answer has of its own."""
    calls = tuple({"function": call["function"], "type": "function"} for call in answer.tool_calls)
    text, reasoning = answer.text.strip(), answer.reasoning.strip()
    return replace(answer, text=text, reasoning=reasoning, usage={}, tool_calls=calls)


def called(answer: ChatAnswer) -> list[dict[str, Any]]:
    functions = [call["function"] for call in answer.tool_calls]
    return [{"name": each["name"], "arguments": json.loads(each["arguments"])} for each in functions]


async def test_the_adapter_is_proven_with_its_tools_and_reasoning(pod: ServingPod) -> None:
    """Its prompts as vLLM renders them are compared, too: a probe with tools says so by what it was rendered to."""
    probes = json.loads((pod.claim / "models/ft_caller/parity.json").read_text())["probes"]
    assert len(probes) == len(ROWS)
    for probe in probes:
        assert probe["tools"] == TOOLS
        assert probe["rendered"]
    shown = [message for probe in probes for message in probe["messages"]]
    assert {"role", "content", "reasoning_content", "tool_calls", "tool_call_id"} <= {
        name for one in shown for name in one
    }
    report = pod.adapter("ft_caller")
    assert report.effective == "True", report


async def test_a_call_comes_parsed_with_its_reasoning_apart(pod: ServingPod) -> None:
    answer = await answer_of(pod, messages=[QUESTION], tools=TOOLS)
    assert (answer.reasoning, answer.text, called(answer)) == (THOUGHT, "", [CALL])
    assert answer.finish_reason == "tool_calls"


async def test_several_calls_come_beside_words(pod: ServingPod) -> None:
    answer = await answer_of(pod, messages=[BOTH], tools=TOOLS, parallel_tool_calls=True)
    assert (answer.reasoning, answer.text, called(answer)) == ("", CALLING_BOTH["content"], CALLS)
    assert answer.finish_reason == "tool_calls"


async def test_the_result_of_a_call_is_answered_in_words(pod: ServingPod) -> None:
    call = {"id": "call_1", "type": "function", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}
    calling = {"role": "assistant", "content": None, "reasoning": THOUGHT, "tool_calls": [call]}
    for result in (RESULT, RESULT | {"content": [{"type": "text", "text": RESULT["content"]}]}):
        answer = await answer_of(pod, messages=[QUESTION, calling, result], tools=TOOLS)
        assert (answer.reasoning, answer.text, called(answer)) == ("", ANSWER, [])
        assert answer.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_written_with_the_sdk_of_openai_comes_to_its_answer(pod: ServingPod, stream: bool) -> None:
    request = {"model": "caller", "messages": [QUESTION], "tools": TOOLS, "temperature": 0}
    request |= {"max_completion_tokens": 96}
    asked = {"url": pod.url, "stream": stream, "request": request, "results": {"get_weather": RESULT["content"]}}
    done = await asyncio.to_thread(
        subprocess.run,
        [str(VLLM_PYTHON), "-P", openai_agent.__file__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [{"choices": [{"message": message}]} for message in json.loads(done.stdout)]
    first, last = (bare(read_answer(each, "")) for each in said)
    assert (first.reasoning, called(first)) == (THOUGHT, [CALL])
    assert (last.text, called(last)) == (ANSWER, [])


async def test_the_fine_tuning_api_passes_chats_on_to_the_model_of_a_job(pod: ServingPod, tmp_path: Path) -> None:
    """By OpenAI's SDK, streamed and not, with tools; the first chat is held until the agent has the job's route."""
    bases = {"gpt-4.1-mini": {"path": "base/qwen3"}}
    async with open_world(tmp_path, {"organization": "acme", "claimName": "tuning", "bases": bases}) as world:
        spec = {"model": {"path": "base/qwen3"}, "volume": {"claimName": "tuning"}}
        await world.server.put("inferenceservices", "faq", spec=spec, status={"url": pod.url})
        model = await world.tuned(model_id="ft_caller")
        await converge(world.context)
        async with listening(world.app) as url, AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
            asked: dict[str, Any] = {"messages": [QUESTION], "tools": TOOLS, "temperature": 0, "max_tokens": 96}
            first = asyncio.ensure_future(client.chat.completions.create(model=model, **asked))
            await asyncio.sleep(0.5)
            assert not first.done()
            pod.want({"caller": "ft_caller", model: "ft_caller"})
            whole = (await first).choices[0].message
            async with client.chat.completions.stream(model=model, **asked) as events:
                streamed = (await events.get_final_completion()).choices[0].message
            for message in (whole, streamed):
                answer = bare(read_answer({"choices": [{"message": message.model_dump()}]}, ""))
                assert (answer.reasoning, answer.text, called(answer)) == (THOUGHT, "", [CALL])
            base = await client.chat.completions.create(model="gpt-4.1-mini", messages=[QUESTION], max_tokens=4)
            assert base.model == "qwen3", "as the service calls it"
            text = await client.completions.create(model=model, prompt="How", max_tokens=4)
            assert text.choices[0].text
            with pytest.raises(BadRequestError) as caught:
                await client.chat.completions.create(model=model, messages=[QUESTION], n=17)
            assert caught.value.param == "n"


async def test_a_forced_call_fits_its_schema(pod: ServingPod) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        answer = await answer_of(pod, messages=[QUESTION], tools=TOOLS, tool_choice=choice, max_tokens=200)
        [call] = called(answer)
        assert call["name"] == "get_weather"
        assert isinstance(call["arguments"]["city"], str)


async def test_a_client_that_wants_no_call_gets_none(pod: ServingPod) -> None:
    answer = await answer_of(pod, messages=[QUESTION], tools=TOOLS, tool_choice="none")
    assert (answer.reasoning, called(answer)) == (THOUGHT, [])


async def test_what_else_a_chat_may_ask_for_reaches_the_engine(pod: ServingPod) -> None:
    """Without thinking the prompt ends with an empty think block, so all that comes is content."""
    status, content = await post(
        pod, messages=[QUESTION], chat_template_kwargs={"enable_thinking": False}, logprobs=True, max_tokens=8
    )
    [choice] = json.loads(content)["choices"]
    assert (status, choice["message"]["reasoning"]) == (200, None)
    assert len(choice["logprobs"]["content"]) > 0
    status, content = await post(
        pod, messages=[QUESTION], stream=True, stream_options={"include_usage": True}, max_tokens=8
    )
    assert status == 200
    assert json.loads(content.decode().split("\n\n")[-3].removeprefix("data: "))["usage"]["completion_tokens"] == 8
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    status, content = await post(
        pod, messages=[QUESTION], response_format=form, chat_template_kwargs={"enable_thinking": False}
    )
    assert status == 200, content
    assert json.loads(json.loads(content)["choices"][0]["message"]["content"]) in ("yes", "no")


async def test_what_no_engine_does_is_refused_by_its_field(pod: ServingPod) -> None:
    for body in ({"functions": [{"name": "f"}]}, {"n": 17}):
        status, content = await post(pod, messages=[QUESTION], **body)
        assert (status, json.loads(content)["error"]["param"]) == (400, next(iter(body)))
