"""The agents' endpoint: a report in, what is wanted out, and only for a pod of that InferenceService."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_tuning.agent.contract import DesiredRoute, DesiredRoutes, DesiredTarget, Report, parse_desired
from tests.support.cluster_tokens import ISSUER, Signer, published
from tuning_operator.core.audience import FETCH_OF_SERVICE, audience_of
from tuning_operator.inference_service.agents import Agents
from tuning_operator.pods.trouble import Reported
from tuning_operator.reports import server as module
from tuning_operator.reports.certificates import make_ca, make_serving_cert
from tuning_operator.reports.server import ProgressServer
from tuning_operator.reports.tls import serving_context
from tuning_operator.reports.tokens import ClusterKeys, TokenVerifier

SIGNER = Signer()
KEY = ("team", "faq")
WANTED = DesiredRoutes(routes=(DesiredRoute(name="support", targets=(DesiredTarget(model_id="ft_a"),)),))
OURS = SIGNER.token(audience_of("team", "faq", "service-uid", "inferenceservice"))
HOLD_SECONDS = 0.5


class Store:
    """InferenceService and TuningJob team/faq, of one uid as in no cluster, with pod p."""

    replica_set: str = "faq-5d9c7b"
    """What owns the pod that serves; that of pod f is a Job, which fetches."""

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if (kind, name) == ("jobs", "faq-serving-fetch-1"):
            owner = {"kind": "InferenceService", "name": "faq", "uid": "service-uid", "controller": True}
            return {"metadata": {"uid": "fetch-uid", "ownerReferences": [owner]}}
        if (namespace, name) != KEY:
            return None
        owner = {"kind": "InferenceService", "name": name, "uid": "service-uid", "controller": True}
        if kind == "deployments":
            return {"metadata": {"uid": "deployment-uid", "ownerReferences": [owner]}}
        return {"metadata": {"uid": "service-uid"}}

    def pods_of(self, uid: str) -> list[dict[str, Any]]:
        owner = {"kind": "ReplicaSet", "name": self.replica_set, "uid": "set-uid", "controller": True}
        job = {"kind": "Job", "name": "faq-serving-fetch-1", "uid": "fetch-uid", "controller": True}
        return [
            {"metadata": {"name": name, "uid": f"{name}-uid", "ownerReferences": [each]}}
            for name, each in (("p", owner), ("f", job))
        ]


@dataclass
class Running:
    server: ProgressServer
    client: aiohttp.ClientSession
    agents: Agents
    fetches: list[tuple[tuple[str, str], Reported]]

    async def report(self, body: bytes | None = None, *, token: str = OURS, kind: str = "report") -> tuple[int, bytes]:
        path = {
            "report": "inferenceservices/faq/report",
            "fetch": "inferenceservices/faq/status",
            "status": "tuningjobs/faq/status",
        }[kind]
        url = f"https://localhost:{self.server.port}/v1/namespaces/team/{path}"
        data = Report().encode().encode() if body is None else body
        async with self.client.post(url, data=data, headers={"Authorization": f"Bearer {token}"}) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(module, "CONNECTION_SECONDS", 0.1)
    now = datetime.now(UTC)
    ca = make_ca(now)
    (tmp_path / "ca.crt").write_bytes(ca.certificate_pem)

    async def jwks() -> dict[str, Any]:
        return published(SIGNER)

    agents = Agents(hold_seconds=HOLD_SECONDS)
    fetches: list[tuple[tuple[str, str], Reported]] = []
    server = ProgressServer(
        TokenVerifier(ClusterKeys(jwks), Store(), lambda: ISSUER),
        lambda key, progress: None,
        serving_context(make_serving_cert(ca, ["localhost"], now)),
        agents.exchange,
        lambda key, reported: fetches.append((key, reported)),
        host="127.0.0.1",
        port=0,
    )
    await server.start()
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(tmp_path / "ca.crt")))
    async with aiohttp.ClientSession(connector=connector) as client:
        yield Running(server, client, agents, fetches)
    await server.close()


async def test_a_report_is_kept_and_answered_with_what_is_wanted(running: Running) -> None:
    running.agents.publish(KEY, WANTED)
    status, body = await running.report(Report(engine_up=True).encode().encode())
    assert (status, parse_desired(body)) == (200, WANTED)
    assert running.agents.reports(KEY)["p-uid"].engine_up


FETCHES = audience_of("team", "faq", "service-uid", FETCH_OF_SERVICE)
FETCH_BODY = b'{"trainerStatus": {"progressPercentage": 40, "metrics": [{"name": "bytes", "value": "4"}]}}'


async def test_the_pod_that_fetches_says_how_far_it_is(running: Running) -> None:
    token = SIGNER.token(FETCHES, pod=("f", "f-uid"))
    assert await running.report(FETCH_BODY, token=token, kind="fetch") == (200, b"")
    [(key, reported)] = running.fetches
    assert (key, reported.progress.percent) == (KEY, 40)


@pytest.mark.parametrize(
    ("kind", "token"),
    [
        ("report", SIGNER.token(FETCHES, pod=("f", "f-uid"))),
        ("fetch", OURS),
        ("fetch", SIGNER.token(FETCHES)),  # of pod p, which serves
        ("report", SIGNER.token(audience_of(*KEY, "service-uid", "inferenceservice"), pod=("f", "f-uid"))),
    ],
)
async def test_a_pod_that_fetches_is_no_agent_and_the_reverse(running: Running, kind: str, token: str) -> None:
    body = FETCH_BODY if kind == "fetch" else None
    status, _ = await running.report(body, token=token, kind=kind)
    assert status == 403
    assert running.fetches == []
    assert running.agents.reports(KEY) == {}


async def test_the_answer_is_held_back_longer_than_a_lingering_connection_may_last(running: Running) -> None:
    running.agents.publish(KEY, WANTED)
    began = time.monotonic()
    status, _ = await running.report(Report(revision=WANTED.revision).encode().encode())
    assert status == 204
    assert time.monotonic() - began >= HOLD_SECONDS


async def test_a_change_ends_the_wait(running: Running) -> None:
    running.agents.hold_seconds = 10
    running.agents.publish(KEY, WANTED)
    waiting = asyncio.create_task(running.report(Report(revision=WANTED.revision).encode().encode()))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    running.agents.publish(KEY, DesiredRoutes())
    async with asyncio.timeout(2):
        status, body = await waiting
    assert (status, parse_desired(body)) == (200, DesiredRoutes())


@pytest.mark.parametrize(
    ("token", "status"),
    [
        ("nonsense", 401),
        (SIGNER.token(audience_of("team", "faq", "service-uid")), 403),  # of the TuningJob of that name
        (SIGNER.token(audience_of("team", "faq", "older-uid", "inferenceservice")), 403),
        (SIGNER.token(audience_of("team", "other", "service-uid", "inferenceservice")), 403),
        (SIGNER.token(audience_of("team", "faq", "service-uid", "inferenceservice"), pod=("q", "q-uid")), 403),
        (SIGNER.token(audience_of("team", "faq", "service-uid", "inferenceservice"), exp=1), 401),
    ],
)
async def test_nobody_else_reports_or_learns_what_is_served(running: Running, token: str, status: int) -> None:
    running.agents.publish(KEY, WANTED)
    answered, body = await running.report(token=token)
    assert answered == status
    assert b"support" not in body
    assert running.agents.reports(KEY) == {}


@pytest.mark.parametrize("replica_set", ["other-5d9c7b", "faq", "faq-extra-5d9c7b", ""])
async def test_a_pod_with_the_labels_that_no_replica_set_of_it_owns_is_refused(
    running: Running, replica_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "replica_set", replica_set)
    assert (await running.report())[0] == 403
    assert running.agents.reports(KEY) == {}


async def test_an_agents_token_is_no_trainers(running: Running) -> None:
    assert (await running.report(kind="status"))[0] == 403


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b'{"adapters": 1}', 400), (b" " * (1024 * 1024 + 1), 413)])
async def test_a_wrong_body_is_refused(running: Running, body: bytes, status: int) -> None:
    assert (await running.report(body))[0] == status
    assert running.agents.reports(KEY) == {}
