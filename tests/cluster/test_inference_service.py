"""An InferenceService with two replicas of real vLLM, and what happens to its clients when parts of it break.

Each adapter answers recognisably, and a steady stream of clients in a pod holds every answer to what the adapter that
gave it is known to say. The tests share one service and come one after the other: a fault, then all is well again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Cluster
from llm_tuning.client import NotServed, TuningClient
from tests.support.devcluster import own_cluster
from tests.support.images.stand_in.clients import API_KEY
from tests.support.serving import (
    ANSWER_TOKENS,
    BASE,
    VLLM_IMAGE,
    ServedFiles,
    condition_of,
    inference_service,
    make_files,
    put,
    status_of,
    wait_for,
)
from tests.support.tuning_namespace import (
    STAND_IN_IMAGE,
    TuningNamespace,
    pod,
    tuning_job,
    tuning_namespace,
    wait_until,
)

ADAPTERS: dict[str, dict[str, Any]] = {
    "ft_a": {"b_scale": 0.05, "seed": 1},
    "ft_b": {"b_scale": 0.05, "seed": 2},
    "ft_later": {"b_scale": 0.05, "seed": 3},
}
ROUTES = {"a": "ft_a", "b": "ft_b"}
SERVICE = "faq"
SERVICES = "inferenceservices.tuning.llmtuning.dev"
REPLICAS = 2


@dataclass
class Clients:
    """The stream of clients in its pod, read by its log."""

    namespace: TuningNamespace
    name: str = "clients"
    _seen: dict[str, int] = field(default_factory=lambda: {"good": 0, "failed": 0, "wrong": 0})

    def counts(self) -> dict[str, int]:
        """All so far."""
        return dict(next((line["counts"] for line in reversed(self._lines()) if "counts" in line), self._seen))

    def since(self) -> dict[str, int]:
        """Since the last time this was asked."""
        now = self.counts()
        found = {kind: now[kind] - self._seen[kind] for kind in now}
        self._seen = now
        return found

    def troubles(self, kind: str = "") -> list[dict[str, Any]]:
        return [line for line in self._lines() if "kind" in line and kind in ("", line["kind"])]

    def _lines(self) -> list[dict[str, Any]]:
        text = self.namespace.kubectl("logs", self.name)
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@dataclass
class Serving:
    """The service under test."""

    cluster: Cluster
    namespace: TuningNamespace
    files: ServedFiles
    clients: Clients
    table: list[str] = field(default_factory=list)

    def apply(self, routes: dict[str, Any], **spec: Any) -> None:
        self.namespace.apply(inference_service(SERVICE, routes, replicas=REPLICAS, **spec))

    def pods(self) -> list[dict[str, Any]]:
        found = self.namespace.list("pods", f"tuning.llmtuning.dev/inference-service={SERVICE}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def in_engine(self, pod_name: str, code: str) -> str:
        return self.namespace.kubectl("exec", pod_name, "-c", "vllm", "--", "python3", "-c", code)

    def restarts(self) -> int:
        return sum(c["restartCount"] for pod in self.pods() for c in pod["status"]["containerStatuses"])

    def is_whole(self) -> bool:
        """Every replica has every adapter, by its own engine, and the status says so."""
        return condition_of(self.namespace, SERVICE)[0] == "True" and all(
            adapter["loadedReplicas"] == REPLICAS for adapter in status_of(self.namespace, SERVICE)["adapters"]
        )

    def settle(self, fault: str, *, broken: Callable[[], bool] | None = None, seconds: float = 400) -> dict[str, int]:
        """Wait until all is well again; returns what clients met meanwhile."""
        began = time.monotonic()
        if broken is not None:
            wait_until(broken, 60, f"the effect of: {fault}")
        wait_until(
            self.is_whole, seconds, lambda: f"{fault}: {json.dumps(status_of(self.namespace, SERVICE), indent=1)}"
        )
        took = time.monotonic() - began
        before = self.clients.counts()["good"]
        wait_until(lambda: self.clients.counts()["good"] > before, 60, f"{fault}: an answer to a client afterwards")
        met = self.clients.since()
        counted = ", ".join(f"{number} {kind}" for kind, number in met.items())
        print(f"fault: {fault:26} {counted}, whole after {took:.1f} s")
        assert met["wrong"] == 0, self.clients.troubles("wrong")
        return met


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    files = make_files(tmp_path_factory.mktemp("claim"), ADAPTERS)
    assert len(set(files.answers.values())) == len(files.answers), "each answers recognisably"
    with (
        own_cluster("serving") as cluster,
        tuning_namespace(cluster, values={"images.vllm": VLLM_IMAGE}, images=(VLLM_IMAGE,)) as namespace,
    ):
        put(namespace, files.folder)
        made = Serving(cluster, namespace, files, Clients(namespace))
        made.apply(ROUTES)
        wait_for(namespace, SERVICE, seconds=500)
        expected = {route: {name: files.answers[name]} for route, name in ROUTES.items()}
        expected[BASE] = {BASE: files.answers[BASE]}
        url = f"http://{SERVICE}"
        command = ["python", "-u", "/opt/stand-in/clients.py", url, json.dumps(expected)]
        namespace.apply(pod("clients", STAND_IN_IMAGE, command, claim=None))
        namespace.kubectl("wait", "--for=condition=Ready", "pod/clients", "--timeout=60s")
        wait_until(lambda: made.clients.counts()["good"] >= 10, 60, "answers")
        yield made


Asked = tuple[int, str, dict[str, Any]]
"""Status, X-Model-Id and body of a request."""


def ask(serving: Serving, route: str, path: str = "/v1/chat/completions", *, key: str = API_KEY) -> Asked:
    """One request from inside the cluster."""
    return ask_as(serving, route, [None], path=path, key=key)[0]


def ask_as(
    serving: Serving,
    route: str,
    users: Sequence[str | None],
    *,
    path: str = "/v1/chat/completions",
    key: str = API_KEY,
) -> list[Asked]:
    """The same request for each user, one after the other."""
    body = {
        "model": route,
        "messages": [{"role": "user", "content": "What is a tuple?"}],
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
    }
    bodies = [body if user is None else {**body, "user": user} for user in users]
    code = f"""
import json, urllib.request, urllib.error
for body in json.loads({json.dumps(bodies)!r}):
    head = {{"Content-Type": "application/json", "Authorization": "Bearer {key}"}}
    request = urllib.request.Request("http://{SERVICE}{path}", json.dumps(body).encode(), head)
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    print(json.dumps([answer.status, answer.headers.get("X-Model-Id") or "", json.loads(answer.read() or b"null")]))
"""
    said = serving.namespace.kubectl("exec", "clients", "--", "python", "-c", code)
    return [tuple(json.loads(line)) for line in said.splitlines()]


def test_all_adapters_are_proven_on_both_replicas(serving: Serving) -> None:
    status = status_of(serving.namespace, SERVICE)
    assert [(a["modelId"], a["loadedReplicas"], a["effective"], a["reason"]) for a in status["adapters"]] == [
        (name, REPLICAS, "True", "Effective") for name in ROUTES.values()
    ]
    assert status["readyReplicas"] == REPLICAS
    for route, name in {**ROUTES, BASE: BASE}.items():
        code, served, body = ask(serving, route)
        assert (code, served) == (200, name)
        assert body["choices"][0]["message"]["content"] == serving.files.answers[name]
    assert ask(serving, "nobody")[0] == 404
    assert ask(serving, "ft_a")[0] == 404, "clients know routes, not model_ids"
    assert ask(serving, BASE, path="/v1/load_lora_adapter")[0] == 404, "the engine's own paths stay inside"
    serving.clients.since()


def test_the_client_asks_through_the_api_server(serving: Serving) -> None:
    """A whole answer and a streamed one, from outside of the cluster."""
    with TuningClient(kubeconfig=serving.cluster.kubeconfig, namespace=serving.namespace.name) as client:
        for route, name in ROUTES.items():
            how: dict[str, Any] = {"model": route, "max_tokens": ANSWER_TOKENS, "temperature": 0}
            answer = client.chat(SERVICE, "What is a tuple?", **how)
            assert (answer.text, answer.model_id) == (serving.files.answers[name], name)
            streamed = "".join(map(str, client.chat_stream(SERVICE, "What is a tuple?", **how)))
            assert streamed == serving.files.answers[name]
        with pytest.raises(NotServed, match="there is no model 'nobody' here"):
            client.chat(SERVICE, "hello", model="nobody")


def test_the_adapter_of_a_tuning_job_is_attached_when_it_has_finished(serving: Serving) -> None:
    """By a stand-in that trains nothing, so that it cannot be proven, which does not block."""
    namespace, before = serving.namespace, serving.restarts()
    serving.apply({**ROUTES, "trained": [{"tuningJob": "later"}]})
    wait_for(namespace, SERVICE, status="False", reason="TuningJobNotFound", seconds=30)
    code, _, body = ask(serving, "trained")
    assert code == 503
    assert "there is no TuningJob later" in body["error"]["message"]
    namespace.apply(tuning_job("later", model={"path": f"base/{BASE}"}))
    namespace.wait("later", "Finished", seconds=120)
    began = time.monotonic()
    wait_until(lambda: len(status_of(namespace, SERVICE)["adapters"]) == 3 and serving.is_whole(), 60, "attached")
    print(f"fault: route of a finished TuningJob answers on both replicas after {time.monotonic() - began:.1f} s")
    model_id = (namespace.get("tuningjobs", "later") or {})["status"]["modelId"]
    assert ask(serving, "trained")[:2] == (200, model_id)
    adapter = status_of(namespace, SERVICE)["adapters"][-1]
    assert (adapter["tuningJob"], adapter["effective"], adapter["reason"]) == ("later", "Unknown", "CannotBeProven")
    namespace.kubectl("delete", "tj", "later")
    time.sleep(2)
    assert ask(serving, "trained")[:2] == (200, model_id), "it outlives the TuningJob"
    serving.apply(ROUTES)
    met = serving.settle("adapter of a TuningJob")
    assert met["failed"] == 0, serving.clients.troubles("failed")
    assert serving.restarts() == before


def test_a_bad_adapter_harms_no_other(serving: Serving, tmp_path: Path) -> None:
    """It is missing: its route says so, Ready is False with the reason, and the others answer."""
    serving.apply({**ROUTES, "broken": "ft_missing"})
    wait_for(serving.namespace, SERVICE, status="False", reason="AdapterNotFound", seconds=30)
    code, served, body = ask(serving, "broken")
    assert (code, served) == (503, "")
    assert "ft_missing" in body["error"]["message"]
    assert ask(serving, "a")[:2] == (200, "ft_a")
    serving.apply(ROUTES)
    met = serving.settle("a missing adapter")
    assert met["failed"] == 0, serving.clients.troubles("failed")
