"""Who may reach the operator's pod, and what it may reach."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.chart import NAMESPACE, Chart
from tuning_operator.core.constants import MANAGED_BY, MANAGED_BY_LABEL


def policy(chart: Chart, *, namespaces: list[str] | None = None, **values: Any) -> dict[str, Any]:
    [found] = chart.objects(
        "NetworkPolicy", watchNamespaces=namespaces or [], networkPolicy={"enabled": True, **values}
    )
    return dict(found["spec"])


def labels_of_test_pod() -> dict[str, str]:
    return {"app.kubernetes.io/name": "llm-tuning-operator-test", "app.kubernetes.io/instance": "llm-tuning"}


def rules(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ingress by port."""
    return {rule["ports"][0]["port"]: rule for rule in found["ingress"]}


def test_it_is_about_the_operators_pod_alone(chart: Chart) -> None:
    objects = chart.objects(networkPolicy={"enabled": True})
    labels = {each["kind"]: each["metadata"]["labels"] for each in objects if each["kind"] == "Pod"}
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    selector = policy(chart)["podSelector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not selector.items() <= labels["Pod"].items()


@pytest.mark.parametrize(
    ("namespaces", "want"),
    [
        ([], [NAMESPACE]),
        (["team-a", "team-b"], ["team-a", "team-b"]),
    ],
)
def test_progress_is_for_our_pods_in_watched_namespaces(chart: Chart, namespaces: list[str], want: list[str]) -> None:
    reports, test = rules(policy(chart, namespaces=namespaces))["progress"]["from"]
    [expression] = reports["namespaceSelector"]["matchExpressions"]
    assert expression == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": want}
    assert reports["podSelector"]["matchLabels"] == {MANAGED_BY_LABEL: MANAGED_BY}
    assert test == {"podSelector": {"matchLabels": labels_of_test_pod()}}


def test_progress_is_for_our_pods_everywhere_in_the_whole_cluster(chart: Chart) -> None:
    reports = rules(policy(chart, namespaces=["*"]))["progress"]["from"][0]
    assert reports["namespaceSelector"] == {}
    assert reports["podSelector"]["matchLabels"] == {MANAGED_BY_LABEL: MANAGED_BY}


def test_metrics_are_for_all_or_for_whom_you_say(chart: Chart) -> None:
    assert "from" not in rules(policy(chart))["http"]
    peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    first, test = rules(policy(chart, metricsFrom=[peer]))["http"]["from"]
    assert first == peer
    assert test == {"podSelector": {"matchLabels": labels_of_test_pod()}}


def test_the_pod_of_helm_test_is_let_in_by_its_labels(chart: Chart) -> None:
    [pod] = chart.objects("Pod")
    assert labels_of_test_pod().items() <= pod["metadata"]["labels"].items()


def test_out_it_reaches_names_and_the_api_server(chart: Chart) -> None:
    found = policy(chart, apiServerPorts=[16443])
    assert found["policyTypes"] == ["Ingress", "Egress"]
    ports = [[(port["port"], port["protocol"]) for port in rule["ports"]] for rule in found["egress"]]
    assert ports == [[(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")], [(16443, "TCP")]]
