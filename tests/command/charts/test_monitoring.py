"""Monitors find what has metrics; alerts and dashboard ask only for metrics and labels that are exported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

import pytest
import yaml
from prometheus_client import CollectorRegistry

from llm_tuning.agent.contract import AGENT_PORT, AdapterReport, Report
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.metrics import Metrics as AgentMetrics
from tests.support.chart import CHART, NAMESPACE, Chart
from tests.support.operator_objects import SETTINGS, START, make_tuning_job
from tests.support.service_objects import make_service
from tuning_operator.core.cache import DEPLOYMENTS, TUNING_JOBS, Cache
from tuning_operator.core.cluster import KIND_NAMES
from tuning_operator.core.metrics import Metrics as OperatorMetrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.inference_service.desire import desire_service
from tuning_operator.inference_service.observed import build_observed_service

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
ON = {"monitors": {"enabled": True}, "alerts": {"enabled": True}, "dashboard": {"enabled": True}}
OF_THE_SCRAPE = {"namespace", "pod"}
"""Labels that Prometheus adds."""
PREFIX = r"\b(?:tuning|llm_tuning|workqueue|controller_runtime)_"
METRIC = re.compile(PREFIX + "[a-z_]+")


class Told:
    """A keeper with one adapter."""

    @staticmethod
    def report() -> Report:
        adapter = AdapterReport(model_id="ft_a", loaded=True, settled=True, effective="True", reason="Effective")
        return Report(revision="1", engine_up=True, ready=True, adapters=(adapter,))


def exercise(operator: OperatorMetrics) -> None:
    """A pass, and a key through a queue."""
    controller, queue = operator.controller("tuningjob"), operator.queue("tuningjob")
    with controller.reconcile():
        controller.count("error", panic=True)
    queue.added()
    queue.retried()
    queue.got(0.1)
    queue.done(0.1)


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """Labels by the name of each series that operator and agent export once everything has happened."""
    operator, store = OperatorMetrics(), Cache()
    store.put(TUNING_JOBS, make_tuning_job(status={"phase": "Failed"}))
    operator.watch(store, {"tuningjob": WorkQueue()})
    exercise(operator)
    operator.count_request("create", "jobs", 403)
    operator.count_report(200)
    agent = AgentMetrics(cast(Keeper, Told()))
    agent.requests.labels("faq", "ft_a", "200").inc()
    for metric in (agent.errors, agent.prompt_tokens, agent.completion_tokens):
        metric.labels("faq", "ft_a").inc()
    agent.first_token.labels("faq", "ft_a").observe(1)
    return dict(_series(operator.registry)) | dict(_series(agent.registry))


def _series(registry: CollectorRegistry) -> Iterator[tuple[str, set[str]]]:
    for family in registry.collect():
        for sample in family.samples:
            yield sample.name, set(sample.labels)


def expressions() -> list[str]:
    """All PromQL of alerts and dashboard."""
    rules = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return rules + targets + [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]


def names_in(expression: str) -> set[str]:
    return set(METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_that_is_asked_for_is_exported(expression: str, exported: dict[str, set[str]]) -> None:
    names = names_in(expression)
    assert names
    assert names <= exported.keys()


@pytest.mark.parametrize("expression", expressions())
def test_every_label_that_is_asked_for_is_there(expression: str, exported: dict[str, set[str]]) -> None:
    known = set.union(*(exported[name] for name in names_in(expression))) | OF_THE_SCRAPE
    for name, matchers in re.findall("(" + PREFIX + r"[a-z_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]~?", matchers)) <= exported[name] | OF_THE_SCRAPE
    for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        assert set(re.split(r",\s*", listed)) <= known


def test_every_metric_is_shown_or_watched(exported: dict[str, set[str]]) -> None:
    asked = set.union(*map(names_in, expressions()))
    parts = re.compile("_(created|count|sum|bucket|total)$")
    assert {parts.sub("", name) for name in exported} == {parts.sub("", name) for name in asked}


def test_an_alert_says_what_has_happened_and_what_to_do() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    labels_shown = re.compile(r"\$labels\.(\w+)")
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        grouped = re.search(r"\bby \(([^)]*)\)", rule["expr"])
        if grouped:  # what the expression sums away cannot be told
            assert set(labels_shown.findall(str(rule["annotations"]))) <= set(grouped[1].split(", ")), rule["alert"]


def test_the_rule_and_the_board_are_those_files(chart: Chart) -> None:
    [rule] = chart.objects("PrometheusRule", metrics={**ON, "alerts": {"enabled": True, "labels": {"release": "p"}}})
    assert rule["spec"] == yaml.safe_load(json.dumps(ALERTS).replace("RELEASE_NAMESPACE", NAMESPACE))
    assert rule["metadata"]["labels"]["release"] == "p"
    [board] = chart.objects("ConfigMap", metrics=ON)
    assert json.loads(board["data"]["llm-tuning.json"]) == DASHBOARD
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_operator_of_another_release_does_not_stand_in_for_an_absent_one(chart: Chart) -> None:
    [rule] = chart.objects("PrometheusRule", metrics=ON)
    alerts = {each["alert"]: each for group in rule["spec"]["groups"] for each in group["rules"]}
    absent = alerts["LLMTuningOperatorAbsent"]
    assert absent["expr"] == f'absent(workqueue_depth{{name="tuningjob", namespace="{NAMESPACE}"}})'
    assert "$labels.namespace" in absent["annotations"]["summary"], "absent() keeps the labels that it was asked for"


def test_panels_do_not_cover_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_service_monitor_finds_the_service(chart: Chart) -> None:
    [monitor] = chart.objects("ServiceMonitor", metrics=ON)
    [service] = chart.objects("Service")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize(
    ("namespaces", "want"),
    [
        ([], {"matchNames": [NAMESPACE]}),
        (["team-a", "team-b"], {"matchNames": ["team-a", "team-b"]}),
        (["*"], {"any": True}),
    ],
)
def test_the_pod_monitor_finds_the_agents(chart: Chart, namespaces: list[str], want: dict[str, Any]) -> None:
    [monitor] = chart.objects("PodMonitor", watchNamespaces=namespaces, metrics=ON)
    observed = build_observed_service(make_service(), spec=None, parts={})
    [deployment] = [body for kind, body in desire_service(observed, SETTINGS, START).create if kind == DEPLOYMENTS]
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert monitor["spec"]["namespaceSelector"] == want
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    [expression] = monitor["spec"]["selector"]["matchExpressions"]
    assert expression["operator"] == "Exists"
    assert expression["key"] in labels
    ports = {
        port["name"]: port["containerPort"] for each in template["spec"]["containers"] for port in each.get("ports", ())
    }
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert ports[endpoint["port"]] == AGENT_PORT


def test_the_alert_on_a_stuck_queue_sees_both_kinds_and_no_other_operator() -> None:
    """controller-runtime's names are those of every operator in the cluster."""
    rules = {rule["alert"]: rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]}
    queues = {name.lower() for name in KIND_NAMES.values()}
    stuck = re.search(r'name=~"([^"]*)"', rules["LLMTuningQueueStuck"])
    assert stuck is not None
    assert set(stuck[1].split("|")) == queues
    for expression in rules.values():
        for _, matchers in re.findall(r"\b((?:workqueue|controller_runtime)_[a-z_]+)\{([^}]*)\}", expression):
            assert 'namespace="RELEASE_NAMESPACE"' in matchers
