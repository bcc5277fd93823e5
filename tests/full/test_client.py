"""The client and the plugin on a real Kubernetes: what unit tests hold on a server that is imitated."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest

from llm_tuning.client import AsyncTuningClient, Forbidden, NotServed, TuningClient, TuningFailed
from llm_tuning.client.explain import explain_job
from tests.cluster.test_client import client, fields, kubeconfig, space
from tests.support.api_proxy import ApiProxy
from tests.support.tuning_namespace import (
    CLAIM,
    STAND_IN_IMAGE,
    TuningNamespace,
    pod,
    wait_until,
)

__all__ = ["client", "kubeconfig", "space"]  # fixtures of the tests below

ANSWER = """
import http.server, json, sys, time

class Agent(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("X-Api-Key") != "secret":
            return self.answer(401, {"error": {"message": "an API key is required", "code": "invalid_api_key"}})
        if not body.get("stream"):
            said = f"{self.headers.get('Authorization')} {body['model']} {body['messages'][-1]['content']}"
            return self.answer(200, {"choices": [{"message": {"content": said}}], "usage": {"total_tokens": 3}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3):
            event = {"choices": [{"delta": {"content": str(number)}}]}
            self.wfile.write(f"data: {json.dumps(event)}\\n\\n".encode())
            self.wfile.flush()
            time.sleep(0.7)
        self.wfile.write(b"data: [DONE]\\n\\n")

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Model-Id", "ft_a")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Agent).serve_forever()
"""


def test_progress_comes_while_it_trains(client: TuningClient) -> None:
    client.tune("steps", **fields(stand_in="sleep=25"))  # the status has a report each ten seconds
    seen = [(job.phase, job.snapshot().step) for job in client.watch("steps")]
    assert seen[0][0] == "Pending" or seen[0][1] == 0
    assert any(phase == "Training" and step > 0 for phase, step in seen)
    assert seen[-1][0] == "Succeeded"
    assert "<svg" in client.get("steps")._repr_html_(), "this client has seen the losses"


def test_logs_follow_from_the_check_to_the_end(client: TuningClient) -> None:
    client.tune("logs", **fields(stand_in="sleep=5"))
    lines = list(client.logs("logs"))
    checked = next(n for n, line in enumerate(lines) if line.startswith("DatasetValid: 40 of 40 rows are kept"))
    trained = next(n for n, line in enumerate(lines) if line.startswith("Trained: "))
    assert checked < trained
    again = list(client.logs("logs", follow=False))
    assert again
    assert not any("DatasetValid" in line for line in again), "the stage that it is at"


def test_bad_data_raises_the_reason_and_the_row(client: TuningClient) -> None:
    job = client.tune("bad", **fields(dataset="datasets/bad.jsonl"))
    with pytest.raises(TuningFailed) as failed:
        job.wait(timeout_seconds=120)
    assert failed.value.reason == "DatasetInvalid"
    assert "row" in failed.value.message
    assert f"delete it (kubectl delete tj bad -n {client.namespace})" in explain_job(client.get("bad"))


def test_suspend_and_resume(client: TuningClient, space: TuningNamespace) -> None:
    client.tune("pause", **fields(stand_in="sleep=8"), suspend=True)
    space.wait("pause", "Suspended")
    job = client.get("pause")
    assert job.phase == "Suspended"
    assert "Nothing of it runs, since its spec suspends it" in explain_job(job)
    assert job.resume().wait(timeout_seconds=120).has_succeeded


def test_a_stuck_job_is_explained_while_it_is_waited_for(
    client: TuningClient, capsys: pytest.CaptureFixture[str]
) -> None:
    job = client.tune("stuck", **fields(volume="no-such-claim"))
    with pytest.raises(TimeoutError, match=r"ClaimNotFound: .*no-such-claim"):
        job.wait(timeout_seconds=40)
    assert "ClaimNotFound" in capsys.readouterr().err
    assert "It makes no progress" in explain_job(job.refresh())
    job.delete()


def test_a_watch_outlives_connections_that_are_cut(space: TuningNamespace, tmp_path: Path) -> None:
    with ApiProxy(space.cluster.kubeconfig) as proxy:
        file = proxy.kubeconfig(tmp_path / "proxy", namespace=space.name)
        with TuningClient(kubeconfig=file) as client:
            client.tune("cut", **fields(stand_in="sleep=8"))
            cuts: list[int] = []
            stop = threading.Event()

            def cut() -> None:
                while not stop.wait(1.0):
                    cuts.append(proxy.cut_watches())

            cutting = threading.Thread(target=cut)
            cutting.start()
            try:
                assert client.wait("cut", timeout_seconds=120).has_succeeded
            finally:
                stop.set()
                cutting.join()
            assert sum(cuts) >= 3


def test_chat_goes_through_the_service_proxy(client: TuningClient, space: TuningNamespace) -> None:
    """What stands behind the Service tells what has come through; the InferenceService itself has no replicas."""
    answering = pod("answering", STAND_IN_IMAGE, ["python", "-u", "-c", ANSWER], claim=None)
    answering["metadata"]["labels"] = {"app": "answering"}
    space.apply(answering)
    space.kubectl("wait", "--for=condition=Ready", "pod/answering", "--timeout=60s")
    routes = [{"name": "faq", "targets": [{"modelId": "ft_a"}]}]
    client.serve("asked", model="base/tiny", volume=CLAIM, routes=routes, replicas=0)
    port = {"name": "http", "port": 80, "targetPort": 8080}
    wait_until(lambda: space.get("service", "asked") is not None, 30, "the operator's Service")
    space.kubectl("scale", "deployment", "llm-tuning-operator", "--replicas=0")
    try:
        space.kubectl("delete", "service", "asked", "--ignore-not-found")
        spec = {"selector": {"app": "answering"}, "ports": [port]}
        space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "asked"}, "spec": spec})

        def answers() -> bool:
            with contextlib.suppress(ConnectionError):  # while the endpoints of the Service come
                return bool(client.chat("asked", "hello", api_key="secret"))
            return False

        wait_until(answers, 30, "an answer")
        answer = client.chat("asked", "hello", api_key="secret", max_tokens=3)
        assert str(answer) == "None faq hello", "the API server has kept the Authorization header for itself"
        assert answer.model_id == "ft_a"
        with pytest.raises(NotServed, match="give api_key"):
            client.chat("asked", "hello")
        began, times = time.monotonic(), []
        pieces = []
        for piece in client.chat_stream("asked", "count", api_key="secret"):
            pieces.append(piece)
            times.append(time.monotonic() - began)
        assert [piece.text for piece in pieces] == ["0", "1", "2", ""]
        assert str(pieces[-1].answer) == "012"
        assert times[-1] - times[0] > 1.0, "they come while they are made"
    finally:
        space.kubectl("scale", "deployment", "llm-tuning-operator", "--replicas=1")
        client.delete_service("asked")


def test_two_at_once_without_blocking(kubeconfig: Path) -> None:
    async def both() -> list[str]:
        async with AsyncTuningClient(kubeconfig=kubeconfig) as client:
            jobs = [await client.tune(**fields(stand_in="sleep=3")) for _ in range(2)]
            done = await asyncio.gather(*(job.wait(timeout_seconds=120) for job in jobs))
            return [job.name for job in done if job.has_succeeded]

    names = asyncio.run(both())
    assert len(set(names)) == 2
    assert all(name.startswith("sft-") for name in names)


def test_without_the_right_it_is_said(client: TuningClient, space: TuningNamespace, kubeconfig: Path) -> None:
    with (
        TuningClient(kubeconfig=kubeconfig, namespace="kube-system") as other,
        pytest.raises(Forbidden, match=r'cannot list resource "tuningjobs".*docs/client\.md'),
    ):
        other.list()
    space.kubectl("patch", "role", "llm-tuning-user", "--type=json", "-p", '[{"op": "remove", "path": "/rules/3"}]')
    client.serve("unheard", model="base/tiny", volume=CLAIM, replicas=0)

    def refusal() -> str:
        try:
            client.chat("unheard", "hello")
        except (Forbidden, ConnectionError, NotServed) as error:
            return str(error)
        return ""

    # The authorizer hears of the change in a moment.
    wait_until(lambda: 'cannot create resource "services/proxy"' in refusal(), 20, refusal)
    client.delete_service("unheard")
