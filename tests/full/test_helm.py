"""A release from its installation to its end, by the real helm, with live objects all the time.

On a cluster of its own: the CRDs are the release's here, and one operator watches all of it in the end.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Cluster, KubectlError
from tests.command.charts.test_values import CLUSTER_WIDE, EVERYTHING
from tests.support.devcluster import own_cluster
from tests.support.operator_rights import CHAIN, DENIED, OPERATOR, OWN, TLS, may
from tests.support.tuning_namespace import (
    CHART,
    OPERATOR_IMAGE,
    STAND_IN_IMAGE,
    TRAINER_IMAGE,
    TuningNamespace,
    tuning_job,
    tuning_namespace,
    wait_until,
)
from tuning_operator.reports.certificates import make_ca, make_serving_cert
from tuning_operator.reports.tls import serving_names

pytestmark = [pytest.mark.timeout(900)]

RELEASE = "llm-tuning"
TUNING_CRD = "tuningjobs.tuning.llmtuning.dev"
NEW_FIELD = "ttlSecondsAfterFinished"
"""Stands for a field that the CRD of this version has and that of the one before had not."""
OLD_DESCRIPTION = "What the version before said."
PLENTY = {"cpu": "500m", "memory": "4Gi"}
SMALL: dict[str, Any] = {"batchSize": 4, "maxLength": 64}
OF_THE_RELEASE = "app.kubernetes.io/instance=llm-tuning"
KINDS = "deployments,services,configmaps,secrets,serviceaccounts,roles,rolebindings,pods,networkpolicies"


@dataclass
class Site:
    """Where the operator is installed, and the namespace of a team; tests hand on what they saw."""

    node: Cluster
    home: str
    team: TuningNamespace
    old_chart: Path
    seen: dict[str, Any] = field(default_factory=dict)

    def helm(self, *arguments: str, wait: bool = True) -> str:
        waiting = ("--wait", "--timeout", "120s") if wait else ()
        return self.node.helm(*arguments, "-n", self.home, *waiting)

    def install(self, chart: Path, *sets: str, verb: str = "install", trainer: str = TRAINER_IMAGE) -> str:
        given = (f"images.operator={OPERATOR_IMAGE}", f"images.trainer={trainer}", *sets)
        return self.helm(verb, RELEASE, str(chart), *(part for each in given for part in ("--set", each)))

    def crd(self, name: str = TUNING_CRD) -> dict[str, Any]:
        return dict(json.loads(self.node.kubectl("get", "crd", name, "-o", "json")))

    def spec_fields(self) -> dict[str, Any]:
        """Of a TuningJob, by the CRD that the API server has."""
        [version] = self.crd()["spec"]["versions"]
        return dict(version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])

    def trainer_pod(self, job: str) -> dict[str, Any] | None:
        selector = f"tuning.llmtuning.dev/job={job},tuning.llmtuning.dev/role=train"
        return next(iter(self.team.list("pods", selector)), None)

    def operator_log(self) -> str:
        """Of its container; nothing while the API server does not answer."""
        try:
            return self.node.kubectl("-n", self.home, "logs", f"deployment/{OPERATOR}")
        except KubectlError:
            return ""

    def adapters(self) -> str:
        return self.team.run(f"list-{time.monotonic_ns()}", STAND_IN_IMAGE, "ls", "/workspace/models")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        node = stack.enter_context(own_cluster("helm", crds=False))
        home = stack.enter_context(node.namespace())
        team = stack.enter_context(tuning_namespace(node, trainer=TRAINER_IMAGE, operator=False))
        yield Site(node, home, team, _old_chart(tmp_path_factory.mktemp("old") / "llm-tuning"))


def _old_chart(folder: Path) -> Path:
    """The chart as a version before might have been: a CRD with less in it."""
    shutil.copytree(CHART, folder)
    described = yaml.safe_load((folder / "Chart.yaml").read_text())
    (folder / "Chart.yaml").write_text(yaml.safe_dump(described | {"version": "0.0.9"}))
    [file] = (folder / "files" / "crds").glob("tuningjobs.*")
    crd = yaml.safe_load(file.read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"][NEW_FIELD]
    spec["properties"]["mode"]["description"] = OLD_DESCRIPTION
    file.write_text(yaml.safe_dump(crd, sort_keys=False))
    return folder


def test_the_version_before_runs_and_publishes(site: Site) -> None:
    said = site.install(site.old_chart, f"watchNamespaces={{{site.team.name}}}")
    assert f"helm test {RELEASE} --namespace {site.home}" in said
    assert NEW_FIELD not in site.spec_fields()
    site.team.apply(tuning_job("first", resources=PLENTY, training=SMALL | {"maxSteps": 4}))
    site.seen["first"] = site.team.wait("first", "Finished", seconds=240)
    assert site.team.conditions("first")["Succeeded"]["status"] == "True"
    service = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "asleep"},
        "spec": {
            "model": {"path": "base/tiny"},
            "volume": {"claimName": "tuning"},
            "routes": [{"name": "support", "targets": [{"tuningJob": "first"}]}],
            "replicas": 0,
        },
    }
    site.team.apply(service)
    kind = "inferenceservices.tuning.llmtuning.dev"
    wait_until(lambda: bool((site.team.get(kind, "asleep") or {}).get("status")), 60, "the service's status")
    site.seen["asleep"] = site.team.get(kind, "asleep")


def test_an_upgrade_brings_the_crd_and_leaves_what_runs_alone(site: Site) -> None:
    site.team.apply(tuning_job("running", resources=PLENTY, training=SMALL | {"maxSteps": 400}))
    wait_until(
        lambda: ((site.trainer_pod("running") or {}).get("status") or {}).get("phase") == "Running", 90, "the trainer"
    )
    before = site.trainer_pod("running")
    assert before is not None
    site.helm("upgrade", RELEASE, str(CHART), "--reset-then-reuse-values")
    fields = site.spec_fields()
    assert NEW_FIELD in fields
    assert fields["mode"]["description"] != OLD_DESCRIPTION
    wait_until(lambda: NEW_FIELD in site.node.kubectl("explain", "tuningjob.spec"), 30, "kubectl explain")
    after = site.trainer_pod("running")
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    job = site.team.wait("running", "Finished", seconds=240)
    assert site.team.conditions("running")["Succeeded"]["status"] == "True", job["status"]
    for kind, name in (("tuningjobs", "first"), ("inferenceservices.tuning.llmtuning.dev", "asleep")):
        there = site.team.get(kind, name)
        assert there is not None
        assert there["metadata"]["uid"] == site.seen[name]["metadata"]["uid"]
        assert there["spec"] == site.seen[name]["spec"]
    site.team.kubectl("patch", "tj", "running", "--type=merge", "-p", json.dumps({"spec": {NEW_FIELD: 3600}}))
    patched = site.team.get("tj", "running")
    assert patched is not None
    assert patched["spec"][NEW_FIELD] == 3600


def test_helm_test_says_what_works_and_leaves_no_pod(site: Site) -> None:
    said = site.helm("test", RELEASE, "--timeout", "120s", "--logs", wait=False)
    assert "Succeeded" in said
    assert said.count("ok: ") == 3, said
    pods = site.node.kubectl("-n", site.home, "get", "pods", "-o", "name")
    assert f"{OPERATOR}-test" not in pods


def test_a_rollback_takes_the_old_crd_and_keeps_the_objects(site: Site) -> None:
    site.helm("rollback", RELEASE, "1")
    fields = site.spec_fields()
    assert NEW_FIELD not in fields
    assert fields["mode"]["description"] == OLD_DESCRIPTION
    for name in ("first", "running"):
        there = site.team.get("tj", name)
        assert there is not None
        assert there["status"]["phase"] == "Succeeded"
        assert "deletionTimestamp" not in there["metadata"]
    site.team.apply(tuning_job("after-rollback", dataset="datasets/bad.jsonl", resources={"gpus": 0}))
    site.team.wait("after-rollback", "Finished")
    assert site.team.conditions("after-rollback")["DatasetValid"]["status"] == "False"


def test_the_end_of_a_release_hangs_nowhere_and_takes_no_result(site: Site) -> None:
    site.install(CHART, f"watchNamespaces={{{site.team.name}}}", verb="upgrade")
    adapter = site.seen["first"]["status"]["modelId"]
    began = time.monotonic()
    site.helm("uninstall", RELEASE)
    assert time.monotonic() - began < 100
    for namespace in (site.home, site.team.name):
        listing = ("-n", namespace, "get", KINDS, "-l", OF_THE_RELEASE, "-o", "name")
        # The Deployment takes its pod along in the background.
        wait_until(lambda: not site.node.kubectl(*listing).split(), 60, f"the end of the release in {namespace}")  # noqa: B023
    assert site.node.kubectl("-n", site.home, "get", "secret,lease", "-o", "name").split() == [
        f"secret/{TLS}",
        f"lease.coordination.k8s.io/{OPERATOR}",
    ]
    assert site.team.get("tj", "first") is not None, "the CRD is kept, and with it every TuningJob"
    assert adapter in site.adapters()
    # Without an operator nothing waits for one: no finalizers.
    site.team.kubectl("delete", "tj", "first", "--timeout=60s")
    assert site.team.get("tj", "first") is None
    assert adapter in site.adapters()


def test_a_release_of_the_same_name_takes_over_what_was_kept(site: Site) -> None:
    authority = site.node.kubectl("-n", site.home, "get", "secret", TLS, "-o", "jsonpath={.data.ca\\.crt}")
    site.install(CHART, f"watchNamespaces={{{site.team.name}}}")
    assert site.crd()["metadata"]["annotations"]["meta.helm.sh/release-name"] == RELEASE
    assert site.node.kubectl("-n", site.home, "get", "secret", TLS, "-o", "jsonpath={.data.ca\\.crt}") == authority
    there = site.team.get("tj", "running")
    assert there is not None
    assert there["status"]["phase"] == "Succeeded"
    site.helm("uninstall", RELEASE)


def test_a_namespace_that_is_deleted_takes_no_other_along(site: Site) -> None:
    """While it runs, and when it starts anew."""

    def check(name: str) -> None:
        site.team.apply(tuning_job(name, dataset="datasets/bad.jsonl"))
        site.team.wait(name, "Finished", seconds=90)

    with site.node.namespace() as gone:
        site.install(CHART, f"watchNamespaces={{{site.team.name},{gone}}}", trainer=STAND_IN_IMAGE)
    wait_until(lambda: gone not in site.node.kubectl("get", "namespaces", "-o", "name"), 60, "the end of the namespace")
    site.node.end("kube-apiserver", signal.SIGKILL)  # so that the watches are opened anew
    site.node.start("kube-apiserver")
    wait_until(lambda: f"namespace {gone} is passed over" in site.operator_log(), 120, "it is noticed")
    check("goes-on")
    assert "ready" in site.operator_log(), "the process has not been started anew"
    site.node.kubectl("-n", site.home, "rollout", "restart", f"deployment/{OPERATOR}")
    site.node.kubectl("-n", site.home, "rollout", "status", f"deployment/{OPERATOR}", "--timeout=60s")
    check("starts-again")
    site.helm("upgrade", RELEASE, str(CHART), "--reuse-values", "--set", f"watchNamespaces={{{site.team.name}}}")
    assert "passed over" not in site.operator_log()
    site.helm("uninstall", RELEASE)


# --- the whole cluster -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everywhere(site: Site) -> Site:
    """The stand-in for a trainer is enough here; the last test of this part ends the release."""
    site.install(CHART, "watchNamespaces={*}", trainer=STAND_IN_IMAGE)
    return site


def test_a_namespace_that_comes_later_is_watched(everywhere: Site) -> None:
    with tuning_namespace(everywhere.node, operator=False) as later:
        later.apply(tuning_job("late"))
        job = later.wait("late", "Finished")
        assert later.conditions("late")["Succeeded"]["status"] == "True"
        assert job["status"]["progress"]["percent"] == 100, "its trainer reports across namespaces"
    log = everywhere.node.kubectl("-n", everywhere.home, "logs", f"deployment/{OPERATOR}")
    assert "Traceback" not in log
    assert "orbidden" not in log


def test_helm_test_passes_there_too(everywhere: Site) -> None:
    assert "Succeeded" in everywhere.helm("test", RELEASE, "--timeout", "120s", wait=False)


def test_it_may_do_the_same_everywhere_and_nothing_else(everywhere: Site) -> None:
    node, home = everywhere.node, everywhere.home
    for verb, resource in CHAIN:
        assert may(node, home, verb, resource, namespace="default"), (verb, resource)
    for verb, resource in OWN:
        assert may(node, home, verb, resource, namespace=home), (verb, resource)
        assert not may(node, home, verb, resource, namespace="default"), (verb, resource)
    for verb, resource in DENIED:
        for namespace in (home, "default"):
            assert not may(node, home, verb, resource, namespace=namespace), (verb, resource, namespace)


def test_a_second_operator_for_the_whole_cluster_is_refused(everywhere: Site) -> None:
    sets = (f"images.operator={OPERATOR_IMAGE}", f"images.trainer={STAND_IN_IMAGE}", "watchNamespaces={*}")
    given = [part for each in (*sets, "crds.enabled=false") for part in ("--set", each)]
    with everywhere.node.namespace() as other, pytest.raises(KubectlError, match="ClusterRole"):
        everywhere.node.helm("install", "second", str(CHART), "-n", other, *given)


def test_its_end_takes_the_right_to_the_whole_cluster(everywhere: Site) -> None:
    everywhere.helm("uninstall", RELEASE)
    left = everywhere.node.kubectl("get", "clusterroles,clusterrolebindings", "-l", OF_THE_RELEASE, "-o", "name")
    assert left.split() == []


# --- what else the chart can install ---------------------------------------------------------------------------------

STAND_IN_KINDS = {
    "monitoring.coreos.com": ("ServiceMonitor", "PodMonitor", "PrometheusRule"),
    "cert-manager.io": ("Issuer", "Certificate"),
}
"""Of operators that are not on the devcluster: their CRDs alone, which take anything."""


@pytest.fixture(scope="module")
def others(site: Site) -> Site:
    """The kinds of the Prometheus operator and of cert-manager are known."""
    crds = [_open_crd(group, kind) for group, kinds in STAND_IN_KINDS.items() for kind in kinds]
    site.node.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(crds))
    site.node.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return site


def _open_crd(group: str, kind: str) -> dict[str, Any]:
    plural = f"{kind.lower()}s"
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "scope": "Namespaced",
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}],
        },
    }


def test_the_api_server_takes_every_object_as_it_is(others: Site, tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    for namespaces in ([others.team.name], ["*"]):
        given = EVERYTHING | {"watchNamespaces": namespaces, "crds": {"enabled": False}}
        values.write_text(yaml.safe_dump(given))
        rendered = others.node.helm("template", RELEASE, str(CHART), "-n", others.home, "-f", str(values))
        objects = [each for each in yaml.safe_load_all(rendered) if each]
        for each in objects:
            if each["kind"] not in CLUSTER_WIDE:  # as helm puts in what has none
                each["metadata"].setdefault("namespace", others.home)
        command = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
        taken = others.node.kubectl(*command, input=yaml.safe_dump_all(objects)).splitlines()
        assert len(taken) == len(objects)


def test_certificates_of_somebody_else_are_served_without_a_right_to_secrets(others: Site) -> None:
    """cert-manager itself is not there: its Secret is made by hand, with what it puts into one."""
    now = datetime.now(UTC)
    ca = make_ca(now)
    pair = make_serving_cert(ca, serving_names(others.home), now)
    pem = {"ca.crt": ca.certificate_pem, "tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{OPERATOR}-certificate"},
        "type": "kubernetes.io/tls",
        "data": {name: base64.b64encode(value).decode() for name, value in pem.items()},
    }
    others.node.kubectl("-n", others.home, "apply", "-f", "-", input=json.dumps(secret))
    on = ("tls.certManager.enabled=true", f"watchNamespaces={{{others.team.name}}}")
    others.install(CHART, *on, trainer=STAND_IN_IMAGE)
    try:
        assert "Succeeded" in others.helm("test", RELEASE, "--timeout", "120s", wait=False)
        others.team.apply(tuning_job("certified"))
        job = others.team.wait("certified", "Finished")
        assert job["status"]["progress"]["percent"] == 100
        for verb in ("get", "create", "update", "list"):
            assert not may(others.node, others.home, verb, "/secrets", namespace=others.home)
            assert not may(others.node, others.home, verb, f"/secrets/{OPERATOR}-certificate", namespace=others.home)
    finally:
        others.helm("uninstall", RELEASE)
