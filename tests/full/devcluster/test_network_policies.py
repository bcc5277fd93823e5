"""NetworkPolicies hold on a devcluster that was started with them.

Each question is one connection by busybox out of a pod that runs all along. A rule takes a moment until it holds, so
each answer is waited for, and what is to be refused is asked beside what is to be let through.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from devcluster.cluster import Cluster, KubectlError
from devcluster.parts import API_PORT, API_SERVICE
from tests.support.devcluster import NO_ROOT, own_cluster
from tests.support.toolbox import box, put_toolbox
from tests.support.tuning_namespace import TuningNamespace, wait_until

pytestmark = [pytest.mark.skipif(NO_ROOT, reason="a node needs root")]

LISTEN = "echo hello > /www/index.html; busybox httpd -p 8001 -h /www; exec busybox httpd -f -p 8000 -h /www"
HOLD_SECONDS = 30
DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]


@dataclass(frozen=True)
class Site:
    """A server on two ports, a friend and a stranger of it, and one who is both but in another namespace."""

    cluster: Cluster
    space: TuningNamespace
    elsewhere: TuningNamespace
    server: str

    def reaches(self, who: str, host: str, port: int, space: TuningNamespace | None = None) -> bool:
        """Whether a connection comes about."""
        command = ("/bin/busybox", "timeout", "3", "busybox", "nc", host, str(port), "-e", "/bin/busybox", "true")
        try:
            (space or self.space).kubectl("exec", who, "--", *command)
        except KubectlError as error:
            if "command terminated with exit code" not in str(error):
                raise
            return False
        return True

    def holds(self, wanted: dict[tuple[str, str, int], bool]) -> None:
        """Wait until each (who, host, port) has the answer, all of them at a time."""
        wait_until(
            lambda: {asked: self.reaches(*asked) for asked in wanted} == wanted,
            HOLD_SECONDS,
            lambda: str({asked: self.reaches(*asked) for asked in wanted}),
        )

    def apply(self, **spec: Any) -> None:
        """The one policy of the namespace."""
        meta = {"name": "policy"}
        self.space.apply(
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}
        )

    def server_is_ready(self) -> bool:
        [status] = (self.space.get("pod", "server") or {})["status"]["containerStatuses"]
        return bool(status["ready"])

    def resolves(self, who: str) -> bool:
        name = f"server.{self.space.name}.svc.cluster.local"
        try:
            self.space.kubectl("exec", who, "--", "/bin/busybox", "timeout", "2", "busybox", "nslookup", name)
        except KubectlError:
            return False
        return True


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with own_cluster("policies", crds=False, volumes=1, network_policies=True) as cluster:
        put_toolbox(cluster)
        with cluster.namespace() as name, cluster.namespace() as other:
            space, elsewhere = TuningNamespace(cluster, name), TuningNamespace(cluster, other)
            server = box("server", LISTEN)
            server["spec"]["volumes"] = [{"name": "www", "emptyDir": {}}]
            server["spec"]["containers"][0]["volumeMounts"] = [{"name": "www", "mountPath": "/www"}]
            # For readiness: on a busy machine one answer may be late, and that must not end the server.
            probe = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1, "failureThreshold": 1}
            server["spec"]["containers"][0]["readinessProbe"] = probe
            server["metadata"]["labels"] = {"app": "server"}
            ports = [{"port": 80, "targetPort": 8000}]
            service = {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "server"},
                "spec": {"selector": {"app": "server"}, "ports": ports},
            }
            space.apply(server, service, person("friend"), person("stranger"))
            elsewhere.apply(person("friend"))
            for where in (space, elsewhere):
                where.kubectl("wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s")
            address = (space.get("pod", "server") or {})["status"]["podIP"]
            yield Site(cluster, space, elsewhere, address)


def person(name: str) -> dict[str, Any]:
    made = box(name, "exec busybox sleep 3600")
    made["metadata"]["labels"] = {"app": name}
    return made


@pytest.fixture(autouse=True)
def _no_policy_is_left(site: Site) -> Iterator[None]:
    yield
    site.space.kubectl("delete", "networkpolicies", "--all")
    site.holds({(who, site.server, port): True for who in ("friend", "stranger") for port in (8000, 8001)})


def test_without_a_policy_all_pods_talk(site: Site) -> None:
    name = f"server.{site.space.name}.svc.cluster.local"
    site.holds({("friend", site.server, 8000): True, ("stranger", site.server, 8001): True, ("friend", name, 80): True})
    assert site.reaches("friend", site.server, 8000, site.elsewhere)


def test_a_default_deny_lets_no_pod_in_and_the_kubelet_still(site: Site) -> None:
    """By the pod's own address, which is on the same bridge, and by that of the Service."""
    site.apply(podSelector={}, policyTypes=["Ingress"])
    address = (site.space.get("service", "server") or {})["spec"]["clusterIP"]
    site.holds(
        {("friend", site.server, 8000): False, ("friend", site.server, 8001): False, ("friend", address, 80): False}
    )
    assert not site.reaches("friend", site.server, 8000, site.elsewhere)
    assert site.reaches("friend", API_SERVICE, 443), "only what comes in was denied"
    wait_until(site.server_is_ready, 10, "the kubelet's probe, which comes every second, to be answered")


def test_who_is_let_in_is_known_by_label_namespace_and_port(site: Site) -> None:
    friend = {"podSelector": {"matchLabels": {"app": "friend"}}}
    ingress = [{"from": [friend], "ports": [{"port": 8000, "protocol": "TCP"}]}]
    site.apply(podSelector={"matchLabels": {"app": "server"}}, policyTypes=["Ingress"], ingress=ingress)
    site.holds(
        {
            ("friend", site.server, 8000): True,
            ("friend", site.server, 8001): False,
            ("stranger", site.server, 8000): False,
        }
    )
    assert not site.reaches("friend", site.server, 8000, site.elsewhere)
    elsewhere = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": site.elsewhere.name}}}
    ingress[0]["from"] = [{**friend, **elsewhere}]
    site.apply(podSelector={"matchLabels": {"app": "server"}}, policyTypes=["Ingress"], ingress=ingress)
    site.holds({("friend", site.server, 8000): False, ("stranger", site.server, 8000): False})
    assert site.reaches("friend", site.server, 8000, site.elsewhere)


def test_out_a_pod_reaches_what_is_named_alone(site: Site) -> None:
    """DNS and the API server are no pods here, so ports are all that names them, as behind their Services."""
    host = site.cluster.plan.node_address
    selector = {"podSelector": {"matchLabels": {"app": "friend"}}, "policyTypes": ["Egress"]}
    site.apply(**selector)
    site.holds({("friend", site.server, 8000): False, ("friend", API_SERVICE, 443): False, ("friend", host, 53): False})
    assert not site.resolves("friend")
    assert site.reaches("stranger", site.server, 8000)
    site.apply(**selector, egress=[{"ports": DNS}])
    site.holds({("friend", site.server, 8000): False, ("friend", API_SERVICE, 443): False, ("friend", host, 53): True})
    assert site.resolves("friend")
    site.apply(**selector, egress=[{"ports": [{"port": API_PORT, "protocol": "TCP"}]}])
    site.holds({("friend", site.server, 8000): False, ("friend", API_SERVICE, 443): True, ("friend", host, 53): False})


def test_a_new_pod_is_held_to_the_policy_that_was_there_before_it(site: Site) -> None:
    site.apply(podSelector={"matchLabels": {"app": "late"}}, policyTypes=["Egress"])
    site.space.apply(person("late"))
    site.space.kubectl("wait", "--for=condition=Ready", "pod/late", "--timeout=60s")
    site.holds({("late", site.server, 8000): False, ("friend", site.server, 8000): True})


def test_the_firewall_is_started_again_and_holds(site: Site) -> None:
    site.apply(podSelector={"matchLabels": {"app": "server"}}, policyTypes=["Ingress"])
    site.holds({("friend", site.server, 8000): False})
    site.cluster.send("kube-router", 9)
    assert not site.reaches("friend", site.server, 8000), "its rules stay while it is away"
    site.space.kubectl("delete", "networkpolicies", "--all")
    site.holds({("friend", site.server, 8000): True})


def test_nothing_of_it_is_in_the_machines_own_tables(site: Site) -> None:
    site.apply(podSelector={}, policyTypes=["Ingress"])
    site.holds({("friend", site.server, 8000): False})
    for command in (["iptables-legacy-save"], ["iptables-save"], ["ipset", "list", "-name"]):
        assert "KUBE" not in subprocess.run(command, capture_output=True, text=True, check=True).stdout
