"""The pod's only door: an answer under a route is of its adapter or a 503 that says why; nothing else comes through."""

from __future__ import annotations

import asyncio
import hmac
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_tuning.agent import commands as agent_main
from llm_tuning.agent import server as server_module
from llm_tuning.agent.body import MAX_BODY_BYTES
from llm_tuning.proof.judge import Verdict
from tests.support.vllm_server import free_port
from tests.unit.llm_tuning.agent.conftest import (
    BASE,
    PLAN,
    SHARED,
    Answer,
    Open,
    Pod,
    desire,
    events,
    eventually,
    metric,
    write_adapter,
)


def refused(answer: Answer, *words: str) -> bool:
    """A 503 that says why, and when to come again."""
    assert answer.status == 503, answer
    assert answer.headers["Retry-After"] == "2"
    assert json.loads(answer.body)["error"]["type"] == "server_error"
    assert all(word in answer.error for word in words), answer.error
    return True


# --- who answers -----------------------------------------------------------------------------------------------------


async def test_each_name_is_answered_by_its_own(door: Pod) -> None:
    for name, model in {"a": "ft_a", "b": "ft_b", BASE: BASE}.items():
        answer = await door.chat(name, temperature=0, user="anna")
        assert (answer.status, answer.model, answer.headers["X-Model-Id"]) == (200, model, model)
        assert answer.headers["X-Request-Id"] == "req-1"
        assert answer.headers["Content-Type"].startswith("application/json")
    assert door.engine.bodies[0] == {"model": "ft_a", "messages": [], "temperature": 0, "user": "anna"}
    answer = await door.post({"model": "a", "prompt": "x"}, "/v1/completions")
    assert answer.model == "ft_a"


async def test_requests_are_shared_by_weight_and_users_stay(door: Pod) -> None:
    random.seed(5)
    door.want({"support": {"ft_a": 3, "ft_b": 1}})
    await door.turn()
    counts = Counter([(await door.chat("support")).model for _ in range(200)])
    assert 125 <= counts["ft_a"] <= 175
    users = {f"user-{n}": (await door.chat("support", user=f"user-{n}")).model for n in range(40)}
    assert set(users.values()) == {"ft_a", "ft_b"}
    for user, model in users.items():
        assert (await door.chat("support", user=user)).model == model
    door.want({"support": {"ft_a": 0, "ft_b": 1}})
    assert {(await door.chat("support", user=user)).model for user in users} == {"ft_b"}, "at once, with no load"


@pytest.mark.parametrize("user", ["\ud800", "", None, 7, {"a": 1}], ids=ascii)
async def test_every_user_of_json_is_answered(door: Pod, user: Any) -> None:
    body = json.dumps({"model": "support", "messages": [], "user": user}).encode()
    answer = await door.post(body)
    assert answer.model in ("ft_a", "ft_b")


async def test_unknown_names_are_404_and_never_the_base(door: Pod) -> None:
    # A model_id is no route; nor is what the engine happens to have.
    door.engine.loras["ft_stray"] = "/elsewhere"
    for name in ("nobody", "ft_a", "ft_stray", "", "A", "a ", "\ud800", "../base"):
        answer = await door.post(json.dumps({"model": name, "messages": []}).encode())
        assert answer.status == 404, name
        assert json.loads(answer.body)["error"]["code"] == "model_not_found"
    assert door.engine.called("chat") == []


@pytest.mark.parametrize("model", [None, 1, ["a"], {"id": "a"}])
async def test_a_model_that_is_no_name_is_400(door: Pod, model: Any) -> None:
    answer = await door.chat(model)
    assert answer.status == 400
    assert "model is required" in answer.error
    assert (await door.post({"messages": []})).status == 400


@pytest.mark.parametrize(
    ("verdict", "reason"), [(Verdict.NO_EFFECT, "NoEffect"), (Verdict.DIFFERENT, "Different")], ids=str
)
async def test_an_adapter_proven_bad_is_503_and_its_neighbour_answers(
    pod: Pod, open_door: Open, verdict: Verdict, reason: str
) -> None:
    pod.proofs.verdicts["ft_b"] = verdict
    pod.want({"a": "ft_a", "b": "ft_b", **SHARED})
    await pod.turn()
    await open_door(pod)
    assert refused(await pod.chat("b"), "b is not served now", "ft_b", reason)
    assert refused(await pod.chat("b", stream=True), reason)
    assert {(await pod.chat("support", user=f"user-{n}")).model for n in range(30)} == {"ft_a"}
    assert pod.engine.called("chat") == ["ft_a"] * 30, "the bad one is not even asked"


async def test_an_adapter_not_proven_yet_is_503(pod: Pod, open_door: Open) -> None:
    pod.want({"a": "ft_a"})
    await open_door(pod)
    assert refused(await pod.chat("a"), "the engine is down: it is starting")
    assert refused(await pod.chat(BASE), "the engine is down")
    await pod.keeper.look()
    assert refused(await pod.chat("a"), "Loading")
    pod.proofs.hold = True
    step = asyncio.create_task(pod.keeper.step())
    await pod.proofs.wait_until_begun()
    assert "ft_a" in pod.engine.loras
    assert refused(await pod.chat("a"), "Proving")
    assert (await pod.chat(BASE)).model == BASE
    pod.proofs.release()
    await step
    assert (await pod.chat("a")).model == "ft_a"


async def test_a_load_that_failed_and_a_misfit_are_503(pod: Pod, open_door: Open) -> None:
    pod.engine.refuse["ft_a"] = (500, "out of slots")
    write_adapter(pod.models, "ft_b", base_hash="c" * 64)
    pod.want({"a": "ft_a", "b": "ft_b", "gone": "ft_c", **SHARED})
    (pod.models / "ft_c" / "model.json").write_text("{")
    await pod.turn()
    await open_door(pod)
    assert refused(await pod.chat("a"), "LoadFailed", "500: out of slots")
    assert refused(await pod.chat("b"), "BaseMismatch")
    assert refused(await pod.chat("gone"), "AdapterInvalid")
    assert refused(await pod.chat("support", user="anna"), "ft_a: LoadFailed", "ft_b: BaseMismatch")
    assert pod.engine.called("chat") == []


async def test_an_engine_restarted_between_two_looks_answers_nothing_wrong(door: Pod) -> None:
    """The agent has not noticed yet: the engine's own 404 becomes a 503, and the adapter is loaded again."""
    await door.engine.restart()
    assert refused(await door.chat("a"), "lost with a restart")
    assert refused(await door.chat("b", stream=True), "lost with a restart")
    assert refused(await door.chat("a"), "Loading")
    assert (await door.chat(BASE)).model == BASE
    await door.turn()
    assert (await door.chat("a")).model == "ft_a"
    assert (await door.chat("b")).model == "ft_b"
    assert door.proofs.asked == ["ft_a", "ft_b"] * 2, "proven anew before it answered"


async def test_no_wrong_answer_while_the_engine_goes_and_comes(pod: Pod, open_door: Open) -> None:
    """Clients ask all the while; the engine is killed, started empty, killed while an adapter is proven."""
    pod.want({"a": "ft_a", "b": "ft_b"})
    await open_door(pod)
    wrong, statuses, stop = [], Counter[int](), asyncio.Event()

    async def client(route: str, model: str) -> None:
        while not stop.is_set():
            answer = await pod.chat(route)
            statuses[answer.status] += 1
            if answer.status == 200 and answer.model != model:
                wrong.append(answer)
            elif answer.status != 200:
                refused(answer)
                await asyncio.sleep(0.005)

    clients = [asyncio.create_task(client(*names)) for names in (("a", "ft_a"), ("b", "ft_b"))]
    for turn in range(30):
        await pod.turn(1)
        await asyncio.sleep(0.01)
        if turn % 3 == 1:
            await pod.engine.kill()
            await asyncio.sleep(0.005 * (turn % 2))
            await pod.engine.start()
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*clients)
    assert not wrong
    assert set(statuses) == {200, 503}
    assert min(statuses.values()) > 20, statuses


async def test_an_engine_that_is_gone_is_503(door: Pod) -> None:
    await door.engine.kill()
    assert refused(await door.chat("a"), "the engine broke off")
    assert refused(await door.chat(BASE), "the engine broke off")
    await door.keeper.look()
    assert refused(await door.chat("a"), "the engine is down: it does not answer")
    assert refused(await door.chat(BASE), "the engine is down")


async def test_an_engine_killed_before_its_answer_is_503(door: Pod) -> None:
    door.engine.gate = asyncio.Event()
    asking = asyncio.create_task(door.chat("a"))
    await eventually(lambda: door.engine.called("chat"))
    await door.engine.kill()
    assert refused(await asking, "the engine broke off")


async def test_an_engine_that_hangs_is_504(door: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "IDLE_SECONDS", 0.05)
    door.engine.gate = asyncio.Event()
    assert (await door.chat("a")).status == 504


async def test_the_engines_own_refusals_are_passed_on(door: Pod) -> None:
    answer = await door.chat("a", max_tokens=-1)
    assert (answer.status, answer.error) == (400, "max_tokens must be at least 1")
    assert door.keeper.blocked("ft_a") is None


# --- the door itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_what_the_engine_has_besides_is_404(door: Pod, path: str, method: str) -> None:
    body = {"lora_name": "ft_a", "lora_path": "/etc", "model": "a", "prompt": "x"}
    calls = len(door.engine.calls)
    async with door.session.request(method, door.url + path, json=body) as response:
        assert response.status == 404
        assert "error" in await response.json()
    assert len(door.engine.calls) == calls


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/../load_lora_adapter",
        "/v1/chat/completions/../../load_lora_adapter",
        "/v1/chat/completions/%2e%2e/%2e%2e/load_lora_adapter",
        "/v1//load_lora_adapter",
        "//v1/load_lora_adapter",
        "/v1/%6coad_lora_adapter",
        "/v1/chat%2Fcompletions",
        "/v1/chat/completions/",
        "/v1/embeddings",
        "/server_info",
        "/docs",
        "/",
    ],
)
async def test_no_spelling_leads_elsewhere(door: Pod, path: str) -> None:
    calls = list(door.engine.calls)
    status = await raw_status(door, f"POST {path} HTTP/1.1", b'{"model":"a"}')
    assert status == 404
    assert door.engine.calls == calls


async def raw_status(pod: Pod, request_line: str, body: bytes = b"", *headers: str) -> int:
    """As sent by a client that puts nothing straight."""
    host, port = pod.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [request_line, f"Host: {host}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    writer.write("\r\n".join(lines).encode("latin-1") + body)
    await writer.drain()
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ", 2)[1])


async def test_wrong_methods_are_405(door: Pod) -> None:
    answer = await door.get("/v1/chat/completions")
    assert (answer.status, answer.error) == (405, "Method Not Allowed")
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"a"', b"\xff\xfe", b"1" * 5000, b'{"model": "a"} x'])
async def test_a_body_that_is_no_json_object_is_400(door: Pod, body: bytes) -> None:
    answer = await door.post(body)
    assert answer.status == 400
    assert "JSON" in answer.error


async def test_a_body_over_the_limit_is_413_and_one_below_it_is_not(door: Pod) -> None:
    head = b'{"model": "a", "messages": [], "pad": "'
    fitting = head + b"x" * (MAX_BODY_BYTES - len(head) - 2) + b'"}'
    assert len(fitting) == MAX_BODY_BYTES
    answer = await door.post(fitting + b" ")
    assert answer.status == 413
    assert json.loads(answer.body)["error"]["type"] == "invalid_request_error"
    door.engine.bodies.clear()
    assert (await door.post(b'{"model": "a", "messages": [], "pad": "' + b"x" * 900_000 + b'"}')).status == 200


async def test_the_api_key_guards_every_answer(pod: Pod, open_door: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.want({"a": "ft_a"})
    await pod.turn()
    await open_door(pod, api_key="s3cret-ä")
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return real(given, key)

    monkeypatch.setattr(server_module.hmac, "compare_digest", compare)
    body = {"model": "a", "messages": []}
    for given in ("", "s3cret-ä", "Bearer", "Bearer ", "Bearer wrong", "Bearer s3cret-", "Basic s3cret-ä"):
        headers = {"Authorization": given} if given else {}
        for answer in (await pod.post(body, headers=headers), await pod.get("/v1/models", headers=headers)):
            assert answer.status == 401, given
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert "s3cret" not in answer.text
    assert (b"wrong", "s3cret-ä".encode()) in compared, "compared in constant time"
    assert pod.engine.called("chat") == []
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} s3cret-ä"}
        assert (await pod.post(body, headers=headers)).model == "ft_a"
        assert (await pod.get("/v1/models", headers=headers)).status == 200
    assert (await pod.get("/v1/models", headers={"X-Api-Key": "s3cret-ä"})).status == 200
    assert (await pod.get("/v1/models", headers={"X-Api-Key": "wrong"})).status == 401
    for path in ("/health", "/metrics", "/ready", "/live", "/engine"):
        assert (await pod.get(path)).status == 200, "the kubelet and Prometheus have no key"
    line = "POST /v1/chat/completions HTTP/1.1"
    assert await raw_status(pod, line, b"{}", "Authorization: Bearer \xff\xfe") == 401
    assert await raw_status(pod, "POST /v1/nothing HTTP/1.1", b"{}") == 401
    for path in ("/%76%31/chat/completions", "/v%31/chat/completions"):
        assert await raw_status(pod, f"POST {path} HTTP/1.1", b'{"model":"a"}') in (401, 404)
    assert pod.engine.called("chat") == ["ft_a"] * 2


async def test_models_lists_what_would_be_answered_now(door: Pod) -> None:
    async def names() -> dict[str, str | None]:
        return {m["id"]: m["parent"] for m in json.loads((await door.get("/v1/models")).body)["data"]}

    assert await names() == {BASE: None, "a": BASE, "b": BASE, "support": BASE}
    door.keeper.lost("ft_a")
    assert await names() == {BASE: None, "b": BASE, "support": BASE}
    await door.engine.kill()
    await door.keeper.look()
    assert await names() == {}


async def test_probes(pod: Pod, open_door: Open) -> None:
    pod.want({"a": "ft_a"})
    await open_door(pod)

    async def statuses() -> dict[str, int]:
        return {path: (await pod.get(path)).status for path in ("/live", "/engine", "/health", "/ready")}

    assert await statuses() == {"/live": 200, "/engine": 503, "/health": 503, "/ready": 503}
    assert (await pod.get("/health")).text == "it is starting"
    await pod.keeper.look()
    assert await statuses() == {"/live": 200, "/engine": 200, "/health": 200, "/ready": 503}
    await pod.keeper.step()
    assert await statuses() == {"/live": 200, "/engine": 200, "/health": 200, "/ready": 200}
    pod.want({"a": "ft_a", "b": "ft_b"})
    assert (await pod.get("/ready")).status == 200
    await pod.engine.kill()
    await pod.keeper.look()
    assert await statuses() == {"/live": 200, "/engine": 503, "/health": 503, "/ready": 503}


async def test_a_fault_of_the_agent_is_500_and_says_nothing(door: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> str:
        raise RuntimeError("secret")

    monkeypatch.setattr(server_module, "choose", fail)
    answer = await door.chat("a")
    assert (answer.status, answer.error) == (500, "a fault of the agent; its log has it")


# --- metrics ---------------------------------------------------------------------------------------------------------


async def test_metrics_are_by_route_and_adapter(door: Pod) -> None:
    await door.chat("a")
    await door.chat("a", max_tokens=-1)
    await door.chat(BASE)
    await door.chat("nobody")
    door.keeper.lost("ft_b")
    await door.chat("b")
    count = "llm_tuning_requests_total"
    assert await metric(door, count, route="a", model_id="ft_a", code="200") == 1
    assert await metric(door, count, route="a", model_id="ft_a", code="400") == 1
    assert await metric(door, count, route=BASE, model_id="", code="200") == 1
    assert await metric(door, count, route="b", model_id="", code="503") == 1
    assert await metric(door, count) == 4, "names of clients' own are no labels"
    assert await metric(door, "llm_tuning_errors_total", route="a", model_id="ft_a") == 1
    assert await metric(door, "llm_tuning_errors_total", route="b", model_id="") == 1
    assert await metric(door, "llm_tuning_prompt_tokens_total", route="a", model_id="ft_a") == 7
    assert await metric(door, "llm_tuning_completion_tokens_total", route="a", model_id="ft_a") == 3
    assert await metric(door, "llm_tuning_first_token_seconds_count", route="a", model_id="ft_a") == 2
    assert await metric(door, "llm_tuning_requests_in_flight") == 0
    assert await metric(door, "vllm:num_requests_running") == 0
    assert b"vllm:num_requests_running" in (await door.get("/metrics")).body


@pytest.mark.parametrize("usage", [True, False], ids=["with usage", "without"])
async def test_tokens_of_streams_are_counted(door: Pod, usage: bool) -> None:
    await door.chat("a", stream=True, stream_options={"include_usage": usage})
    counted = await metric(door, "llm_tuning_completion_tokens_total", route="a", model_id="ft_a")
    assert counted == 3
    assert await metric(door, "llm_tuning_prompt_tokens_total", route="a", model_id="ft_a") == (7 if usage else 0)
    assert await metric(door, "llm_tuning_first_token_seconds_count", route="a", model_id="ft_a") == 1


async def test_metrics_tell_of_adapters_and_engine(pod: Pod, open_door: Open) -> None:
    pod.proofs.verdicts |= {"ft_b": Verdict.NO_EFFECT, "ft_c": Verdict.CANNOT_BE_PROVEN}
    pod.engine.refuse["ft_d"] = (500, "no")
    pod.want({"a": "ft_a", "b": "ft_b", "c": "ft_c", "d": "ft_d"})
    await pod.turn()
    await open_door(pod)
    names = ("ft_a", "ft_b", "ft_c", "ft_d")
    assert [await metric(pod, "llm_tuning_adapter_effective", model_id=name) for name in names] == [1, 0, -1, -1]
    assert [await metric(pod, "llm_tuning_adapter_loaded", model_id=name) for name in names] == [1, 1, 1, 0]
    assert await metric(pod, "llm_tuning_engine_up") == 1
    await pod.engine.kill()
    await pod.keeper.look()
    assert await metric(pod, "llm_tuning_engine_up") == 0, "and the agent's own are there without the engine's"


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_draining_answers_what_is_under_way_and_what_still_comes(
    door: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_main, "LEAVE_SECONDS", 0.1)
    door.engine.gate = asyncio.Event()
    asking = asyncio.create_task(door.chat("a", stream=True))
    await eventually(lambda: door.server.active == 1)
    draining = asyncio.create_task(agent_main._drain(door.server))
    await asyncio.sleep(0.02)
    assert (await door.get("/ready")).status == 503
    assert (await door.get("/live")).status == 200
    late = asyncio.create_task(door.chat("b"))
    await asyncio.sleep(0.3)
    assert not draining.done()
    door.engine.gate.set()
    assert events((await asking).body)[-1] == "[DONE]"
    assert (await late).model == "ft_b"
    async with asyncio.timeout(1):
        await draining


async def test_draining_ends_although_a_request_does_not(door: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_main, "LEAVE_SECONDS", 0.0)
    monkeypatch.setattr(agent_main, "DRAIN_SECONDS", 0.1)
    door.engine.gate = asyncio.Event()
    asking = asyncio.create_task(door.chat("a"))
    await eventually(lambda: door.server.active == 1)
    async with asyncio.timeout(1):
        await agent_main._drain(door.server)
    asking.cancel()


async def test_the_agent_from_start_to_sigterm(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` itself, in this process: what the ConfigMap wants is served; the end is told to vLLM by a file."""
    stops: list[Callable[[], None]] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", lambda number, stop: stops.append(stop))
    port = free_port()
    own = {"RUN_DIR": tmp_path, "CONFIG_DIR": tmp_path, "ROOT": tmp_path, "MODELS": "models"}
    own |= {"AGENT_PORT": port, "ENGINE_PORT": pod.engine.port, "LEAVE_SECONDS": 0.1}
    for name, value in own.items():
        monkeypatch.setattr(agent_main, name, value)
    monkeypatch.setenv("LLM_TUNING_API_KEY", "key")
    pod.write("ft_a")
    (tmp_path / "vllm.json").write_text(PLAN.encode())
    (tmp_path / "desired.json").write_text(desire({"a": "ft_a"}).encode())
    (tmp_path / "drained").touch()
    serving = asyncio.create_task(agent_main.serve())
    pod.url = f"http://127.0.0.1:{port}"

    async def ready() -> bool:
        try:
            return (await pod.get("/ready")).status == 200
        except aiohttp.ClientError:
            return False

    async with asyncio.timeout(10):
        while not await ready():
            assert not serving.done()
            await asyncio.sleep(0.05)
    assert not (tmp_path / "drained").exists(), "of the container before"
    assert (await pod.chat("a")).status == 401
    answer = await pod.post({"model": "a", "messages": []}, headers={"Authorization": "Bearer key"})
    assert answer.model == "ft_a"
    stops[0]()
    async with asyncio.timeout(5):
        assert await serving == 0
    assert (tmp_path / "drained").exists()
