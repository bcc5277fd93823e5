"""What README and docs say to type on a cluster is typed as it is printed, on a cluster that the pages make themselves.

What stands in for what is in tests/support/page_runs.py; what a page supposes to be there already is prepared here. The
first installation trains and serves for real, the second one has the stand-in for a trainer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.full.test_kserve import kserve_crd
from tests.support.devcluster import NO_ROOT, cluster_name, remove
from tests.support.missing import skip_or_fail
from tests.support.page_runs import ON_A_CLUSTER, Reader, Walk
from tests.support.pages import ROOT, yaml_documents

pytestmark = [pytest.mark.timeout(900)]

ON_CPU: dict[str, Any] = {"gpus": 0, "cpu": "500m", "memory": "4Gi"}
SMALL: dict[str, Any] = {"gpus": 0, "cpu": "100m", "memory": "256Mi"}


@dataclass
class Site:
    """The reader, and whether all went well so far: each walk begins where the one before ended."""

    reader: Reader
    broken_at: str = ""

    def __post_init__(self) -> None:
        self.prepare = self.reader.prepare
        self.folder = self.reader.folder

    def apply(self, *objects: dict[str, Any]) -> None:
        (self.folder / "prepared.yaml").write_text(yaml.safe_dump_all(objects))
        self.prepare("kubectl apply -f prepared.yaml")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if NO_ROOT:
        skip_or_fail("a devcluster needs root")
    name = cluster_name("pages")
    reader = Reader(tmp_path_factory.mktemp("pages"), cluster=name)
    try:
        yield Site(reader)
    finally:
        reader.terminal.close()
        remove(name)


def faq_job(**spec: Any) -> dict[str, Any]:
    """The first TuningJob that README shows, on the CPU: no node here has a GPU."""
    job: dict[str, Any] = yaml.safe_load(yaml_documents(ROOT / "README.md")[0])
    on_the_claim = {"path": "base/qwen3-0.6b"}  # the second installation knows no hub
    job["spec"] |= {"model": on_the_claim, "resources": SMALL, **spec}
    return job


def at_devcluster(site: Site) -> None:
    site.prepare("source .venv/bin/activate")


def at_start_platform(site: Site) -> None:
    jobs = site.folder / "examples/demo/cluster/help-desk.yaml"
    shorter, changed = re.subn(r"epochs: 3", "maxSteps: 6", jobs.read_text())
    assert changed == 2
    jobs.write_text(shorter)


def at_start_ml(site: Site) -> None:
    """In a namespace with a claim that has the page's rows; the memory of the first service is needed."""
    site.prepare(
        "kubectl config set-context --current --namespace tuning-demo",
        "kubectl delete tisvc help-desk",
        "kubectl exec hub -- mkdir Qwen",
        "kubectl exec hub -- cp -r demo/tiny-python Qwen/Qwen3-0.6B",
        "kubectl exec volume -- cp datasets/answers.json datasets/faq.json",
    )
    [text] = [text for text in yaml_documents(ROOT / "docs/start-ml.md") if "kind: TuningJob" in text]
    job = yaml.safe_load(text)
    job["spec"]["resources"] = ON_CPU
    job["spec"]["training"] = {"maxSteps": 6, "learningRate": 2e-3, "batchSize": 16}
    job["spec"]["serve"]["resources"] = ON_CPU
    (site.folder / "faq.yaml").write_text(yaml.safe_dump(job))


def at_afterwards(site: Site) -> None:
    """The run's own store comes from the claim to where the pages' `/workspace` is here."""
    model_id = site.prepare("kubectl get tj faq -o jsonpath='{.status.modelId}'")
    site.reader.values["model_id"] = model_id
    site.prepare(
        "cp -r base/tiny-python base/qwen3-0.6b",
        f"kubectl cp volume:models/.mlflow/{model_id} workspace/models/.mlflow/{model_id}",
    )


def at_install(site: Site) -> None:
    """Another release brings the CRDs, and the first one's end has left them."""
    site.prepare(
        "helm uninstall llm-tuning --namespace tuning-demo --wait",
        "kubectl delete crd tuningjobs.tuning.llmtuning.dev inferenceservices.tuning.llmtuning.dev",
        "python -m devcluster image build stand-in",
        f"python -m devcluster load localhost/llm-tuning/stand-in:dev --name {site.reader.values['cluster']}",
    )


def at_tuningjob(site: Site) -> None:
    """A team's namespace with files on its claim and on this machine, and a run on each."""
    (site.folder / "datasets").mkdir()
    rows = [{"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}."} for i in range(40)]
    (site.folder / "datasets/faq.json").write_text(json.dumps(rows))
    site.prepare(
        "kubectl config set-context --current --namespace team-a",
        "sed 's/tuning-demo/team-a/' examples/demo/cluster/namespace.yaml | kubectl apply -f -",
        "kubectl wait --for=condition=Ready pod/volume --timeout=90s",
        "kubectl exec volume -- mkdir -p base",
        "kubectl cp --no-preserve base/qwen3-0.6b volume:/workspace/base/qwen3-0.6b",
        "kubectl cp --no-preserve datasets volume:/workspace/datasets",
        "tune-llm --llm_path base/qwen3-0.6b --dataset_path datasets/faq.json --model_id faq --experiment_name faq",
    )
    site.apply(faq_job(tracking={"experimentName": "stand-in:sleep=3"}))
    site.prepare("kubectl wait tj/faq --for=condition=Reconciling --timeout=60s")  # the next command reads its status


def at_kubectl_plugin(site: Site) -> None:
    site.prepare("kubectl delete tj faq")
    (site.folder / "job.yaml").write_text(yaml.safe_dump(faq_job()))


def at_suspend(site: Site) -> None:
    site.prepare("kubectl delete tj faq")
    site.apply(faq_job())


def at_operations(site: Site) -> None:
    service = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "faq"},
        "spec": {"model": {"path": "base/qwen3-0.6b"}, "volume": {"claimName": "tuning"}, "replicas": 0},
    }
    site.apply(service, kserve_crd())
    site.prepare(
        "kubectl wait --for=condition=Established crd/inferenceservices.serving.kserve.io --timeout=30s",
        "kubectl wait tj/faq --for=condition=Finished --timeout=90s",
    )


PREPARE: dict[str, Callable[[Site], None]] = {
    "devcluster": at_devcluster,
    "start-platform": at_start_platform,
    "start-ml": at_start_ml,
    "afterwards": at_afterwards,
    "install": at_install,
    "tuningjob": at_tuningjob,
    "kubectl-plugin": at_kubectl_plugin,
    "suspend": at_suspend,
    "operations": at_operations,
}


@pytest.mark.parametrize("walk", ON_A_CLUSTER, ids=lambda walk: walk.name)
def test_what_a_page_says_works_on_a_cluster(walk: Walk, site: Site) -> None:
    assert not site.broken_at, f"{site.broken_at} has failed, and this goes on from there"
    site.broken_at = walk.name
    PREPARE.get(walk.name, lambda _: None)(site)
    site.reader.follow(walk)
    if walk.name == "install":
        follow_what_helm_says(site)
    site.broken_at = ""


def follow_what_helm_says(site: Site) -> None:
    """The commands in the chart's NOTES."""
    notes = site.prepare("helm get notes llm-tuning --namespace llm-tuning")
    commands = re.findall(r"^  (\S.+)$", notes, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["helm", "kubectl", "kubectl"]
    site.prepare(*commands)
