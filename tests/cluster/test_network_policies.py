"""The policies of the chart and of an InferenceService where they are enforced: who gets through, and that all works.

Pods stand for those that the policies tell apart; each asks for connections from inside, all in one go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from devcluster.cluster import Cluster
from devcluster.parts import API_SERVICE
from llm_tuning.agent.contract import AGENT_PORT, ENGINE_PORT
from tests.support.tuning_namespace import (
    CLAIM,
    STAND_IN_IMAGE,
    TuningNamespace,
    pod,
    tuning_job,
    tuning_namespace,
    wait_until,
)
from tuning_operator.core.constants import MANAGED_BY, MANAGED_BY_LABEL

OPERATOR = "llm-tuning-operator"
REPORTS, METRICS, API = 8443, 8080, 443
SERVICES = "inferenceservices.tuning.llmtuning.dev"
HOLD_SECONDS = 30
POLICY = {"networkPolicy.enabled": "true", "networkPolicy.metricsFrom[0].podSelector.matchLabels.app": "monitoring"}
LISTEN = f"""
import http.server, threading
for port in ({AGENT_PORT}, {ENGINE_PORT}):
    server = http.server.HTTPServer(("", port), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
"""
CONNECT = """
import json, socket, sys
def reaches(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True
print(json.dumps([reaches(host, port) for host, port in json.load(sys.stdin)]))
"""
Targets = list[tuple[str, int]]


@dataclass(frozen=True)
class Site:
    """An operator with its policy; pods that it made, that watch it, and that are nobody's, here and elsewhere."""

    space: TuningNamespace
    elsewhere: TuningNamespace

    def reached(self, who: str, targets: Targets, space: TuningNamespace | None = None) -> list[bool]:
        """Whether a connection to each comes about."""
        command = ("exec", "-i", who, "--", "python", "-c", CONNECT)
        answers: list[bool] = json.loads((space or self.space).kubectl(*command, input=json.dumps(targets)))
        return answers

    def holds(self, who: str, targets: Targets, wanted: list[bool], space: TuningNamespace | None = None) -> None:
        """Wait until it is so: a rule takes a moment until it is written."""
        wait_until(
            lambda: self.reached(who, targets, space) == wanted,
            HOLD_SECONDS,
            lambda: f"{who} to reach {targets}: {wanted}, not {self.reached(who, targets, space)}",
        )


@pytest.fixture(scope="module")
def site(cluster: Any) -> Iterator[Site]:
    if not isinstance(cluster, Cluster):
        pytest.skip("whether the cluster of KUBECONFIG_E2E enforces NetworkPolicies is not known")
    with tuning_namespace(cluster, values=POLICY) as space, cluster.namespace() as other:
        elsewhere = TuningNamespace(cluster, other)
        ours = {MANAGED_BY_LABEL: MANAGED_BY}
        space.apply(person("ours", ours), person("monitoring", {"app": "monitoring"}), person("stranger", {}))
        elsewhere.apply(person("ours", ours), person("monitoring", {"app": "monitoring"}))
        for where in (space, elsewhere):
            where.kubectl("wait", "--for=condition=Ready", "pods", "-l", "test=person", "--timeout=60s")
        yield Site(space, elsewhere)


def person(name: str, labels: dict[str, str], *, command: tuple[str, ...] = ("sleep", "3600")) -> dict[str, Any]:
    made = pod(name, STAND_IN_IMAGE, list(command), claim=None)
    made["metadata"]["labels"] = {"test": "person", **labels}
    return made


def address(space: TuningNamespace, selector: str) -> str:
    [found] = space.list("pods", selector)
    return str(found["status"]["podIP"])


def test_a_tuning_job_reports_its_progress_and_ends(site: Site) -> None:
    """A first report may be refused, as long as the rules of its pod are being written: the next one comes."""
    site.space.apply(tuning_job("job", stand_in="sleep=20"))

    def progress() -> dict[str, Any]:
        return ((site.space.get("tuningjobs", "job") or {}).get("status") or {}).get("progress") or {}

    wait_until(lambda: progress().get("step", 0) > 0, 60, lambda: f"a report from the trainer, has {progress()}")
    assert progress()["percent"] < 100
    assert site.space.wait("job", "Finished")["status"]["phase"] == "Succeeded"


def test_reports_come_from_pods_of_watched_namespaces_and_metrics_are_for_whom_was_said(site: Site) -> None:
    host = f"{OPERATOR}.{site.space.name}.svc"
    behind = address(site.space, f"app.kubernetes.io/name={OPERATOR}")
    ports: Targets = [(host, REPORTS), (host, METRICS), (behind, REPORTS), (behind, METRICS)]
    site.holds("ours", ports, [True, False, True, False])
    site.holds("monitoring", ports, [False, True, False, True])
    site.holds("stranger", ports, [False] * 4)
    site.holds("ours", ports, [False] * 4, site.elsewhere)
    site.holds("monitoring", ports, [False] * 4, site.elsewhere)


def test_the_operator_reaches_names_and_the_api_server_alone(site: Site) -> None:
    site.space.apply(person("server", {}, command=("python", "-c", LISTEN)))
    site.space.kubectl("wait", "--for=condition=Ready", "pod/server", "--timeout=60s")
    server = str((site.space.get("pod", "server") or {})["status"]["podIP"])
    site.holds("stranger", [(server, AGENT_PORT), (API_SERVICE, API)], [True, True])
    site.holds(f"deployment/{OPERATOR}", [(server, AGENT_PORT), ("kubernetes.default.svc", API)], [False, True])


def test_helm_test_gets_through(site: Site) -> None:
    said = site.space.cluster.helm("test", "llm-tuning", "-n", site.space.name, "--timeout", "120s")
    assert "Phase:          Succeeded" in said


def test_a_serving_pod_answers_on_the_agents_port_and_reaches_names_and_the_operator_alone(site: Site) -> None:
    """By a pod that has the labels of the service's own and listens on the engine's port, too."""
    service = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "asleep"},
        "spec": {"model": {"path": "base/tiny"}, "volume": {"claimName": CLAIM}, "replicas": 0},
    }
    site.space.apply(service)
    wait_until(lambda: site.space.get("networkpolicy", "asleep") is not None, 60, "the policy of the service")
    labels = (site.space.get("networkpolicy", "asleep") or {})["spec"]["podSelector"]["matchLabels"]
    site.space.apply(person("replica", {MANAGED_BY_LABEL: MANAGED_BY, **labels}, command=("python", "-c", LISTEN)))
    site.space.kubectl("wait", "--for=condition=Ready", "pod/replica", "--timeout=60s")
    replica = str((site.space.get("pod", "replica") or {})["status"]["podIP"])
    for who, where in (("stranger", site.space), ("monitoring", site.elsewhere)):
        site.holds(who, [(replica, AGENT_PORT), (replica, ENGINE_PORT)], [True, False], where)
    host = f"{OPERATOR}.{site.space.name}.svc.cluster.local"
    behind = address(site.space, f"app.kubernetes.io/name={OPERATOR}")
    out: Targets = [(host, REPORTS), (behind, METRICS), (API_SERVICE, API), (replica, AGENT_PORT)]
    site.holds("stranger", out[2:], [True, True])
    site.holds("replica", out[:3], [True, False, False])
