"""The log follows the job from pod to pod and loses and doubles no line when a stream is cut."""

from __future__ import annotations

import asyncio
import io

import pytest
from aiohttp import web

from llm_tuning.api.kube import LABEL_INDEX
from llm_tuning.client import AsyncTuningClient, Forbidden, LossPoint, NotFound, logs
from llm_tuning.client.logs import losses_in
from llm_tuning.core.figures import LOSS
from llm_tuning.errors import InputError
from llm_tuning.progress.lines import JsonLines
from llm_tuning.progress.snapshot import Snapshot
from tests.support.fake_api_server import FakeApiServer, cut, status_object
from tests.unit.llm_tuning.client.conftest import FAILED, SPEC, SUCCEEDED, training


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(logs, "PAUSES", (0.01, 0.05))


async def all_lines(client: AsyncTuningClient, *, follow: bool = True) -> list[str]:
    return [line async for line in client.logs("faq", follow=follow)]


async def test_from_the_check_to_the_end_of_the_training(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    following = asyncio.create_task(all_lines(client))
    await asyncio.sleep(0.1)
    server.add_pod("faq", "check", "faq-check-1", lines=["10 rows are kept"])
    await asyncio.sleep(0.15)
    server.add_pod("faq", "train", "faq-train-1", state="waiting", lines=["step 1", "step 2"])
    await asyncio.sleep(0.15)
    server.set_state("faq-train-1", "terminated")
    server.add_pod("faq", "train", "faq-train-2", lines=["step 2 again", "done"])
    server.add_pod("other", "train", "other-train", lines=["nobody asked"])
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    assert await asyncio.wait_for(following, 5) == ["10 rows are kept", "step 1", "step 2", "step 2 again", "done"]


async def test_it_begins_at_the_stage_that_runs(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=training(1))
    server.add_pod("faq", "check", "faq-check-1", lines=["checked"])
    server.add_pod("faq", "train", "faq-train-1", lines=["step 1"])
    assert await all_lines(client, follow=False) == ["step 1"]
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    assert await asyncio.wait_for(all_lines(client), 5) == ["step 1"]


async def test_of_a_training_of_several_pods_it_is_the_one_that_has_the_rank(
    server: FakeApiServer, client: AsyncTuningClient
) -> None:
    spec = {**SPEC, "resources": {"gpus": 2, "nodes": 2}}
    await server.put("tuningjobs", "faq", spec=spec, status=SUCCEEDED)
    server.add_pod("faq", "check", "faq-check-1", lines=["checked"])
    for index in (1, 0):
        pod = server.add_pod("faq", "train", f"faq-train-{index}-x", lines=[f"of pod {index}"])
        pod["metadata"]["labels"][LABEL_INDEX] = str(index)
        server.cluster.change("pods", pod)
    for rank, line in enumerate(["of pod 0", "of pod 0", "of pod 1", "of pod 1"]):
        assert [line async for line in client.logs("faq", follow=False, rank=rank)] == [line]
    for rank in (4, -1):
        with pytest.raises(InputError, match=rf"TuningJob faq has no rank {rank}; its ranks are 0 to 3"):
            await anext(client.logs("faq", rank=rank))


@pytest.mark.parametrize("sidecar", ["aaa-proxy", "istio-proxy", "zzz-agent"])
async def test_the_log_is_of_our_container_whatever_runs_beside_it(
    server: FakeApiServer, client: AsyncTuningClient, sidecar: str
) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    following = asyncio.create_task(all_lines(client))
    waiting = server.add_pod("faq", "train", "faq-train-1", state="waiting", lines=["step 1"])
    server.add_sidecar(waiting, sidecar)
    await asyncio.sleep(0.2)
    assert not any("/log" in path for path in server.paths("GET")), "the proxy runs, the trainer does not yet"
    server.set_state("faq-train-1", "terminated", container="trainer")
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    assert await asyncio.wait_for(following, 5) == ["step 1"]


async def test_a_job_that_failed_in_its_check_has_that_log(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=FAILED)
    server.add_pod("faq", "check", "faq-check-1", lines=["row 3: output is empty"])
    assert await asyncio.wait_for(all_lines(client), 5) == ["row 3: output is empty"]


async def test_a_pod_that_never_started_holds_up_nothing(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC, status=FAILED)
    server.add_pod("faq", "train", "faq-train-1", state="waiting")
    assert await asyncio.wait_for(all_lines(client), 5) == []


async def test_a_cut_stream_goes_on_without_a_gap_or_a_double(server: FakeApiServer, client: AsyncTuningClient) -> None:
    """Two lines of one moment, seconds without their zeros, and a kubelet that gives the last second again."""
    server.add_pod("faq", "train", "faq-train-1", state="running")
    server.logs["faq-train-1"] = [
        ("2026-11-29T08:01:00.1Z", "one"),
        ("2026-11-29T08:01:00.12Z", "two"),
        ("2026-11-29T08:01:00.12Z", "three"),
        ("2026-11-29T08:01:00.12Z", "four"),
        ("2026-11-29T08:01:01Z", "five\u2028\x85 is one line"),
    ]
    text = "".join(f"{time} {line}\n" for time, line in server.logs["faq-train-1"]).encode()

    def until(word: bytes) -> bytes:
        return text[: text.index(word) + len(word) + 1]

    async def first(response: web.StreamResponse, request: web.Request) -> None:
        await response.write(until(b"three"))
        await asyncio.sleep(0.05)
        cut(request)

    async def second(response: web.StreamResponse, request: web.Request) -> None:
        assert request.query["sinceTime"] == "2026-11-29T08:01:00.12Z"
        await response.write(until(b"four"))  # from the whole second on: `one` again
        server.set_state("faq-train-1", "running")

    async def third(response: web.StreamResponse, request: web.Request) -> None:
        await response.write(text[text.index(b"four") - 24 :])
        server.set_state("faq-train-1", "terminated")

    server.next_logs += [first, second, third]
    await server.put("tuningjobs", "faq", spec=SPEC, status=SUCCEEDED)
    lines = await asyncio.wait_for(all_lines(client), 5)
    assert lines == ["one", "two", "three", "four", "five\u2028\x85 is one line"]


async def test_a_silent_trainer_is_not_given_up(
    server: FakeApiServer, client: AsyncTuningClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SILENT_SECONDS", 0.1)
    server.add_pod("faq", "train", "faq-train-1", state="running")

    async def silent(response: web.StreamResponse, request: web.Request) -> None:
        await asyncio.sleep(0.5)

    async def speaks(response: web.StreamResponse, request: web.Request) -> None:
        await response.write(b"2026-11-29T08:01:00Z at last\n")
        server.set_state("faq-train-1", "terminated")

    server.next_logs += [*[silent] * 6, speaks]
    await server.put("tuningjobs", "faq", spec=SPEC, status=SUCCEEDED)
    assert await asyncio.wait_for(all_lines(client), 10) == ["at last"]


async def test_what_cannot_be_read_is_said(server: FakeApiServer, client: AsyncTuningClient) -> None:
    with pytest.raises(NotFound, match='"faq" not found'):
        await all_lines(client)
    await server.put("tuningjobs", "faq", spec=SPEC)
    server.next_answers.append(status_object(404, "NotFound", "gone"))
    with pytest.raises(NotFound):
        await all_lines(client)
    job = await client.get("faq")
    server.next_answers.append(status_object(403, "Forbidden", 'cannot list resource "pods"'))
    with pytest.raises(Forbidden, match='cannot list resource "pods"'):
        await job._client.losses("faq")


def test_losses_are_found_among_other_lines_and_a_resumed_run_overwrites() -> None:
    def line(step: int, loss: float | None) -> str:
        written = io.StringIO()
        metrics = {} if loss is None else {LOSS: loss}
        JsonLines(written).show(Snapshot("training", step, 9, metrics=metrics, stepping=True))
        return written.getvalue().rstrip()

    lines = [
        "Loading",
        line(1, 3.0),
        line(2, 2.5),
        line(3, 2.0),
        "{broken",
        '{"step": "x"}',
        line(4, None),
        "[1]",
        line(2, 2.4),
    ]
    assert losses_in(lines) == [LossPoint(1, 3.0), LossPoint(2, 2.4)]
    assert losses_in([*lines, '{"percent": 1, "step": 5, "loss": NaN}', line(5, 1.0)])[-1] == LossPoint(5, 1.0)


async def test_the_curve_is_of_the_log_or_of_what_was_seen(server: FakeApiServer, client: AsyncTuningClient) -> None:
    await server.put("tuningjobs", "faq", spec=SPEC)
    waiting = asyncio.create_task(client.wait("faq", progress=False))
    await asyncio.sleep(0.1)
    for step in (10, 20):
        await server.put("tuningjobs", "faq", status=training(step, loss=3 - step / 10))
    await server.put("tuningjobs", "faq", status=SUCCEEDED)
    await waiting
    assert await client.losses("faq") == [LossPoint(10, 2.0), LossPoint(20, 1.0), LossPoint(100, 0.1)]
    server.add_pod(
        "faq",
        "train",
        "faq-train-1",
        lines=['{"percent": 1, "step": 1, "loss": 3.5}', '{"percent": 1, "step": 2, "loss": 3.0}'],
    )
    assert await client.losses("faq") == [LossPoint(1, 3.5), LossPoint(2, 3.0)]
