"""An InferenceService while parts of it are killed, changed and without the operator."""

from __future__ import annotations

import json
import signal
import time

import pytest

from devcluster.cluster import KubectlError
from tests.cluster.test_inference_service import REPLICAS, ROUTES, SERVICE, SERVICES, Serving, ask, ask_as, serving
from tests.support.images.stand_in.clients import API_KEY
from tests.support.serving import (
    condition_of,
    status_of,
    wait_for,
)
from tests.support.tuning_namespace import (
    wait_until,
)

pytestmark = [pytest.mark.alone]

__all__ = ["serving"]  # fixtures of the tests below


def test_an_engine_is_killed(serving: Serving) -> None:
    victim = serving.pods()[0]["metadata"]["name"]
    before = serving.restarts()
    kill = (  # the engine's core and workers; the API server, which is process 1, cannot be killed from inside
        "import os, pathlib, signal\n"
        "for path in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    if int(path.name) not in (1, os.getpid()): os.kill(int(path.name), signal.SIGKILL)"
    )
    serving.in_engine(victim, kill)
    serving.settle("engine killed", broken=lambda: serving.restarts() > before)


def test_a_pod_is_deleted(serving: Serving) -> None:
    victim = serving.pods()[0]["metadata"]["name"]
    serving.namespace.kubectl("delete", "pod", victim, "--wait=false")
    met = serving.settle("pod deleted", broken=lambda: victim not in {p["metadata"]["name"] for p in serving.pods()})
    assert met["failed"] == 0, serving.clients.troubles("failed")


def _answers(serving: Serving) -> bool:
    """Whether the kubelet, which hands out the clients' log, is there."""
    try:
        serving.clients.counts()
    except KubectlError:
        return False
    return True


def test_the_kubelet_restarts(serving: Serving) -> None:
    serving.cluster.end("kubelet", signal.SIGKILL)
    time.sleep(3)
    serving.cluster.start("kubelet")
    wait_until(lambda: _answers(serving), 60, "the kubelet hands out logs again")
    met = serving.settle("kubelet restarted")
    assert met["failed"] == 0, serving.clients.troubles("failed")


def test_the_list_of_adapters_changes(serving: Serving) -> None:
    """Added in a canary, then weights, then gone: no load, no restart, no failed request."""
    before = serving.restarts(), {p["metadata"]["name"] for p in serving.pods()}
    canary = [{"modelId": "ft_a", "weight": 9}, {"modelId": "ft_later", "weight": 1}]
    began = time.monotonic()
    serving.apply({"a": [{"modelId": "ft_a"}], "b": "ft_b", "canary": canary})
    wait_until(
        lambda: len(status_of(serving.namespace, SERVICE)["adapters"]) == 3 and serving.is_whole(), 60, "attached"
    )
    print(f"fault: adapter attached on both replicas after {time.monotonic() - began:.1f} s")
    users = [f"user-{n}" for n in range(20)]
    served = [name for _, name, _ in ask_as(serving, "canary", users)]
    assert set(served) == {"ft_a", "ft_later"}
    assert served == [name for _, name, _ in ask_as(serving, "canary", users)], "each user stays"
    serving.apply({"a": "ft_a", "b": "ft_b", "canary": [{"modelId": "ft_a", "weight": 0}, {"modelId": "ft_later"}]})
    wait_until(
        lambda: {name for _, name, _ in ask_as(serving, "canary", [None] * 4)} == {"ft_later"}, 20, "the other weights"
    )
    serving.apply(ROUTES)
    wait_until(lambda: ask(serving, "canary")[0] == 404, 20, "the route is gone")
    met = serving.settle("list of adapters changed")
    assert met["failed"] == 0, serving.clients.troubles("failed")
    assert (serving.restarts(), {p["metadata"]["name"] for p in serving.pods()}) == before


def test_the_config_map_is_deleted(serving: Serving) -> None:
    serving.namespace.kubectl("delete", "configmap", f"{SERVICE}-serving")
    wait_until(lambda: serving.namespace.get("configmap", f"{SERVICE}-serving") is not None, 20, "made again")
    met = serving.settle("ConfigMap deleted")
    assert met["failed"] == 0, serving.clients.troubles("failed")


def test_without_the_operator_all_that_runs_goes_on(serving: Serving) -> None:
    """And what breaks meanwhile heals: the agents keep their own engines."""
    namespace = serving.namespace
    namespace.kubectl("scale", "deployment", "llm-tuning-operator", "--replicas=0")
    wait_until(
        lambda: (
            not namespace.list("pods", "app.kubernetes.io/component=operator,app.kubernetes.io/instance=llm-tuning")
            and "llm-tuning-operator" not in namespace.kubectl("get", "pods", "-o", "name")
        ),
        60,
        "no operator",
    )
    serving.clients.since()
    victim = serving.pods()[0]["metadata"]["name"]
    before = serving.restarts()
    serving.in_engine(victim, "import os, signal; os.kill(1, signal.SIGTERM)")
    wait_until(lambda: serving.restarts() > before, 120, "an engine restarted")

    def ready() -> int:
        return sum(c["ready"] for p in serving.pods() for c in p["status"]["containerStatuses"] if c["name"] == "agent")

    wait_until(lambda: ready() < REPLICAS, 60, "its agent has noticed")
    wait_until(lambda: ready() == REPLICAS, 240, "both agents ready again")
    time.sleep(3)
    met = serving.clients.since()
    print(f"fault: operator down, engine restarted  {met}")
    assert met["wrong"] == 0
    namespace.kubectl("scale", "deployment", "llm-tuning-operator", "--replicas=1")
    serving.settle("operator is back")


def test_a_change_of_the_engine_rolls_without_a_failed_request(serving: Serving) -> None:
    """The API key that is asked for from now on is such a change too."""
    before = {p["metadata"]["name"] for p in serving.pods()}
    secret = {"name": "llm-tuning-clients", "key": "key"}
    serving.namespace.kubectl("create", "secret", "generic", secret["name"], f"--from-literal=key={API_KEY}")
    assert ask(serving, "a", key="sk-wrong")[0] == 200, "no key is asked for yet"
    serving.apply(ROUTES, vllm={"maxModelLen": 256}, apiKeySecret=secret)
    met = serving.settle(
        "engine flag changed", broken=lambda: condition_of(serving.namespace, SERVICE)[0] == "False", seconds=400
    )
    assert met["failed"] == 0, serving.clients.troubles("failed")
    assert not before & {p["metadata"]["name"] for p in serving.pods()}
    assert ask(serving, "a", key="sk-wrong")[0] == 401
    assert ask(serving, "a")[:2] == (200, "ft_a")
    assert API_KEY not in json.dumps([serving.pods(), status_of(serving.namespace, SERVICE)])


def test_an_engine_that_will_not_start_takes_nobody_down(serving: Serving) -> None:
    """More context than the base has: vLLM refuses, in its own words, and the replicas of before go on."""
    secret = (serving.namespace.get(SERVICES, SERVICE) or {})["spec"]["apiKeySecret"]
    serving.apply(ROUTES, vllm={"maxModelLen": 1_000_000}, apiKeySecret=secret)
    wait_for(serving.namespace, SERVICE, kind="Stalled", reason="EngineFailing", seconds=180)
    message = condition_of(serving.namespace, SERVICE, "Stalled")[2]
    print(f"fault: vLLM that will not start: {message}")
    assert "max_model_len" in message, message
    serving.apply(ROUTES, vllm={"maxModelLen": 256}, apiKeySecret=secret)
    met = serving.settle("engine that will not start")
    assert met["failed"] == 0, serving.clients.troubles("failed")
