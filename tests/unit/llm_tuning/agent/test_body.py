"""Bodies that are made to harm: compressed, many small values, nested, never whole; and those that only look so."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import time
import zlib
from typing import Any

import pytest

from llm_tuning.agent import body as module
from llm_tuning.agent.body import MAX_VALUES
from tests.unit.llm_tuning.agent.conftest import Open, Pod, eventually

HEAD = b'{"model": "a", "messages": [], "pad": '
SMALL_VALUES = {
    "objects": b"{}",
    "lists": b"[]",
    "empty texts": b'""',
    "texts": b'"a"',
    "numbers": b"1",
    "pairs": b'{"a":1}',
    "lists of lists": b"[[[[]]]]",
}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "x-gzip", "gzip, gzip", "nonsense"])
@pytest.mark.parametrize("whole", [True, False], ids=["compressed", "garbage"])
async def test_a_compressed_body_is_refused_unread(door: Pod, encoding: str, whole: bool) -> None:
    """Eight kilobytes may be eight megabytes."""
    content = HEAD + b'"' + b"a" * 8_000_000 + b'"}'
    packed = gzip.compress(content) if "gzip" in encoding else zlib.compress(content)
    data = packed if whole else b"\x00garbage"
    answer = await door.post(data, headers={"Content-Encoding": encoding, "Content-Type": "application/json"})
    assert answer.status == 415
    assert "Content-Encoding" in answer.error
    assert door.engine.called("chat") == []


async def test_a_body_that_says_that_it_is_not_compressed_passes(door: Pod) -> None:
    assert (await door.post(HEAD + b"1}", headers={"Content-Encoding": "identity"})).status == 200


@pytest.mark.parametrize("value", SMALL_VALUES.values(), ids=SMALL_VALUES)
async def test_many_small_values_are_refused_before_they_are_parsed(door: Pod, value: bytes) -> None:
    number = (8 * 2**20 - 100) // (len(value) + 1)
    content = HEAD + b"[" + b",".join([value] * number) + b"]}"
    assert (number > MAX_VALUES) or value.startswith(b"[[")
    answer = await door.post(content)
    assert answer.status == 400
    assert "262,144 values" in answer.error
    assert door.engine.called("chat") == []


@pytest.mark.parametrize(
    "text", ["a,b,c,{}[]" * 50_000, '{"k": [1, 2, 3]}, ' * 30_000, "\\" * 300_000 + ',"[' * 100_000], ids=len
)
async def test_a_text_full_of_brackets_and_commas_is_one_value(door: Pod, text: str) -> None:
    """A table or a program in a prompt; what counts is outside of texts."""
    messages = [{"role": "user", "content": text}]
    assert (await door.post({"model": "a", "messages": messages})).status == 200
    assert door.engine.bodies[-1]["messages"] == messages


async def test_a_prompt_of_many_tokens_by_their_ids_passes(door: Pod) -> None:
    prompt = list(range(200_000))
    assert (await door.post({"model": "a", "prompt": prompt}, path="/v1/completions")).status == 200
    assert door.engine.bodies[-1]["prompt"] == prompt


@pytest.mark.parametrize("bracket", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [990, 100_000])
async def test_a_body_that_is_nested_too_deeply_is_told_so(door: Pod, bracket: bytes, depth: int) -> None:
    end = b"]" if bracket == b"[" else b"}"
    answer = await door.post(HEAD + bracket * depth + b"1" + end * depth + b"}")
    assert answer.status == 400
    assert "nested too deeply" in answer.error


@pytest.mark.parametrize(
    ("content", "model"),
    [
        (b'{"model":"a","messages":[]}', "ft_a"),
        (b' {"messages":[], "model" : "a"} \r\n\t ', "ft_a"),
        (b'{"model":"base","messages":[],"model":"a"}', "ft_a"),
        (b'{"model":"a","messages":[],"pad":"}"}', "ft_a"),
        (b'{"model":"a","messages":[],"pad":{"model":"b"}}', "ft_a"),
        ('{"model":"a","messages":[],"pad":"ü€😀"}'.encode(), "ft_a"),
        (b'\xef\xbb\xbf{"model":"a","messages":[]}', "ft_a"),
        (b'{"model":"base","messages":[]}', "base"),
    ],
)
async def test_the_engine_gets_what_the_client_sent_but_for_the_model(door: Pod, content: bytes, model: str) -> None:
    assert (await door.post(content)).status == 200
    sent = json.loads(content.decode("utf-8-sig"))
    assert door.engine.bodies == [sent | {"model": model}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
async def test_another_encoding_than_utf_8_is_refused(door: Pod, encoding: str) -> None:
    content = '{"model":"a","messages":[],"pad":"ü"}'.encode(encoding)
    answer = await door.post(content)
    assert answer.status == 400
    assert "JSON" in answer.error
    assert door.engine.called("chat") == []


async def test_all_bodies_together_are_bounded_and_small_ones_pass(door: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 1_000_000)
    host, port = door.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {2_000_000}\r\n\r\n"
    waiting = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + HEAD + b'"' + b"x" * 300_000)
        await writer.drain()
        waiting.append((reader, writer))
    await eventually(lambda: door.server._bodies.held > 900_000)
    large = await door.post(HEAD + b'"' + b"x" * 300_000 + b'"}')
    assert (large.status, large.headers["Retry-After"]) == (503, "2")
    assert "too many large requests" in large.error
    assert (await door.chat("a")).status == 200
    for _, writer in waiting:
        writer.close()
    await eventually(lambda: door.server._bodies.held == 0)
    assert (await door.post(HEAD + b'"' + b"x" * 300_000 + b'"}')).status == 200
    assert door.server._bodies.held == 0


async def test_a_body_is_not_held_while_the_engine_answers(door: Pod) -> None:
    door.engine.gate = asyncio.Event()
    asking = asyncio.create_task(door.post(HEAD + b'"' + b"x" * 900_000 + b'"}'))
    await eventually(lambda: door.engine.called("chat"))
    await eventually(lambda: door.server._bodies.held == 0)
    door.engine.gate.set()
    assert (await asking).status == 200


async def test_a_body_that_never_comes_is_given_up(door: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.2)
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n{")
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not come within" in answer
    writer.close()
    await eventually(lambda: not door.server.active)


MALFORMED = [
    b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: \x00\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


async def test_malformed_requests_are_a_line_in_the_log_and_many_are_not_many(
    door: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    """Anybody in reach can send them."""
    caplog.set_level(logging.INFO)
    for content in MALFORMED * 5:
        host, port = door.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(content)
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 15)
        assert not answer or int(answer.split(b" ", 2)[1]) in (400, 404), (content, answer)
        writer.close()
    assert "Traceback" not in caplog.text
    assert len(caplog.records) <= 3, caplog.text
    assert (await door.chat("a")).status == 200


async def test_a_long_name_is_not_repeated_at_length(door: Pod) -> None:
    answer = await door.chat("x" * 100_000)
    assert answer.status == 404
    assert len(answer.body) < 600
    assert "100,000 characters" in answer.error


async def test_one_model_can_be_asked_for(door: Pod) -> None:
    listed = {model["id"]: model for model in json.loads((await door.get("/v1/models")).body)["data"]}
    for name, model in listed.items():
        answer = await door.get(f"/v1/models/{name}")
        assert (answer.status, json.loads(answer.body)) == (200, model)
    for name in ("nobody", "ft_a", "x" * 5000):
        answer = await door.get(f"/v1/models/{name}")
        assert answer.status == 404
        assert json.loads(answer.body)["error"]["code"] == "model_not_found"
        assert len(answer.body) < 600


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["a", "support", "base"])
async def test_the_answer_has_the_name_that_the_client_asked_for(door: Pod, stream: bool, name: str) -> None:
    answer = await door.chat(name, stream=stream, stream_options={"include_usage": True})
    texts = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line] if stream else [answer.text]
    models = {json.loads(text)["model"] for text in texts if text != "[DONE]"}
    assert models == {name}
    assert answer.headers["X-Model-Id"] in ({"base"} if name == "base" else {"ft_a", "ft_b"})


async def test_a_large_answer_is_passed_on_as_it_comes(
    door: Pod, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Log-probabilities of a long prompt are a hundred megabytes."""
    from llm_tuning.agent import server

    monkeypatch.setattr(server, "HELD_ANSWER_BYTES", 100)
    door.engine.usage = {"prompt_tokens": 7, "completion_tokens": 3, "pad": "x" * 500_000}  # type: ignore[dict-item]
    answer = await door.chat("a")
    value: dict[str, Any] = json.loads(answer.body)
    assert (answer.status, value["model"], len(value["usage"]["pad"])) == (200, "a", 500_000)
    assert answer.headers["Transfer-Encoding"] == "chunked"


async def test_the_loop_serves_others_between_large_bodies(door: Pod) -> None:
    """Each is parsed at once, and cannot be interrupted: so they take turns, with the loop in between."""
    content = HEAD + b"[" + b",".join([b"{}"] * (MAX_VALUES - 100)) + b"]}"
    asking = [asyncio.create_task(door.post(content)) for _ in range(12)]
    waits = []
    while not all(task.done() for task in asking):
        began = time.monotonic()
        assert (await door.get("/live")).status == 200
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.01)
    assert [task.result().status for task in asking] == [200] * 12
    assert len(waits) > 5


@pytest.mark.parametrize("key", ["", " ", "\n", " \t\r\n"])
async def test_an_empty_key_serves_nobody(
    pod: Pod, open_door: Open, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    pod.want({"a": "ft_a"})
    await pod.turn()
    await open_door(pod, api_key=key)
    assert "the API key is empty: every request is refused" in caplog.text
    for headers in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {key.strip()}x"},
        {"Authorization": "Basic Og=="},
        {"X-Api-Key": ""},
        {"X-Api-Key": " "},
    ):
        for answer in (await pod.post({"model": "a"}, headers=headers), await pod.get("/v1/models", headers=headers)):
            assert answer.status == 401
            assert "empty API key" in answer.error
    assert pod.engine.called("chat") == []
    assert (await pod.get("/live")).status == 200


@pytest.mark.parametrize("key", ["s3cret\n", "s3cret\r\n", " s3cret ", "\ts3cret"])
async def test_blanks_around_the_key_do_not_count(pod: Pod, open_door: Open, key: str) -> None:
    pod.want({"a": "ft_a"})
    await pod.turn()
    await open_door(pod, api_key=key)
    for headers in ({"Authorization": "Bearer s3cret"}, {"X-Api-Key": "s3cret"}):
        assert (await pod.post({"model": "a", "messages": []}, headers=headers)).status == 200
    assert (await pod.get("/v1/models", headers={"X-Api-Key": "s3cre"})).status == 401
