"""The API chart's NetworkPolicy where it is enforced: who reaches the API, what it reaches, and that helm test passes.

Each answer of a policy is asked beside one that holds without it, so that nothing is refused for another reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from devcluster.cluster import Cluster
from devcluster.parts import API_SERVICE
from llm_tuning.agent.contract import AGENT_PORT, ENGINE_PORT
from tests.cluster.test_network_policies import API, LISTEN, Site, person
from tests.support.api_site import NAME, ApiSite
from tests.support.tuning_namespace import TuningNamespace, tuning_namespace, wait_until

CALLER = {"app": "caller"}
REPLICA = {"tuning.llmtuning.dev/inference-service": "served"}
LISTENING = ("python", "-c", LISTEN)
KUBELET = 10250


@pytest.fixture(scope="module")
def site(cluster: Any) -> Iterator[Site]:
    """No operator: the API reads what there is, and asks nothing of it."""
    if not isinstance(cluster, Cluster):
        pytest.skip("whether the cluster of KUBECONFIG_E2E enforces NetworkPolicies is not known")
    with tuning_namespace(cluster, operator=False) as space, cluster.namespace() as other:
        elsewhere = TuningNamespace(cluster, other)
        space.apply(person("caller", CALLER), person("stranger", {}))
        space.apply(person("replica", REPLICA, command=LISTENING), person("server", {}, command=LISTENING))
        elsewhere.apply(person("caller", CALLER), person("replica", REPLICA, command=LISTENING))
        ApiSite(space).install({})
        for where in (space, elsewhere):
            where.kubectl("wait", "--for=condition=Ready", "pods", "-l", "test=person", "--timeout=60s")
        yield Site(space, elsewhere)


def address(space: TuningNamespace, name: str) -> str:
    return str((space.get("pod", name) or {})["status"]["podIP"])


def test_it_reaches_names_the_api_server_and_replicas_of_its_namespace_alone(site: Site, cluster: Cluster) -> None:
    replica, server = address(site.space, "replica"), address(site.space, "server")
    theirs, node = address(site.elsewhere, "replica"), cluster.plan.node_address
    refused = [(replica, ENGINE_PORT), (server, AGENT_PORT), (theirs, AGENT_PORT), (node, KUBELET)]
    site.holds("stranger", refused, [True] * 4)
    taken = [(replica, AGENT_PORT), ("kubernetes.default.svc", API), (API_SERVICE, API)]
    site.holds(f"deployment/{NAME}", [*taken, *refused], [True] * 3 + [False] * 4)


def test_everybody_may_ask_it_until_the_values_say_who(site: Site) -> None:
    service = [(f"{NAME}.{site.space.name}.svc.cluster.local", 80)]
    site.holds("stranger", service, [True])
    site.holds("caller", service, [True], site.elsewhere)
    api = ApiSite(site.space)
    api.upgrade("networkPolicy.from[0].podSelector.matchLabels.app=caller")
    site.holds("caller", service, [True])
    site.holds("stranger", service, [False])
    site.holds("caller", service, [False], site.elsewhere)
    [pod] = api.pods()
    wait_until(lambda: _is_ready(api), 30, "the probes of the kubelet, which no policy keeps away")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


def _is_ready(api: ApiSite) -> bool:
    [pod] = api.pods()
    return bool(pod["status"]["containerStatuses"][0]["ready"])


def test_helm_test_gets_through(site: Site) -> None:
    """Its pod is none of those that the values name."""
    assert "Succeeded" in ApiSite(site.space).type_readme("helm test")
