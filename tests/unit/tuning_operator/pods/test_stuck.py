"""Each way to be stuck, in the words that Kubernetes has for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llm_tuning.api.conditions import Reason
from llm_tuning.pod.roles import CHECK, REPORT, TRAIN
from tests.support.operator_objects import (
    SETTINGS,
    Raw,
    after,
    make_job,
    make_observed,
    make_pod,
    make_tuning_job,
    make_warning,
)
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import MOUNTING, SCHEDULING, Table, events_due, find_stuck, of_words
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.stage import JobStage
from tuning_operator.tuning_job.stages import STAGES

SPEC: Raw = {
    "dataset": {"configMap": {"name": "rows", "key": "faq.json"}},
    "resources": {"gpus": 2, "cpu": "4", "memory": "16Gi"},
    "tracking": {"uri": "http://mlflow", "credentialsSecret": {"name": "llm-tuning-mlflow"}},
}
QUOTA = (
    'Error creating: pods "faq-train-x7k2p" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=2, '
    "used: requests.nvidia.com/gpu=1, limited: requests.nvidia.com/gpu=2"
)
PRIVILEGED = (
    'Error creating: pods "faq-train-abcde" is forbidden: violates PodSecurity "restricted:latest": host namespaces '
    "(hostNetwork=true)"
)
STAGE = {stage.role.name: stage for stage in STAGES if isinstance(stage, JobStage)}
MOUNT = "MountVolume.SetUp failed for volume"


def child_of(*, pod: Raw | None = None, warnings: list[Raw] | None = None, role: str = TRAIN, **job: object) -> Child:
    made = make_job(role, **job)  # type: ignore[arg-type]
    pods = [pod] if pod is not None else []
    return make_observed(make_tuning_job(**SPEC), jobs=[made], pods=pods, warnings=warnings or []).children[role]


def stuck_of(child: Child, role: str = TRAIN) -> Trouble | None:
    spec = make_observed(make_tuning_job(**SPEC)).spec
    assert spec is not None
    return find_stuck(child, STAGE[role].pod_requests(spec, SETTINGS))


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        ('0/1 nodes are available: persistentvolumeclaim "tuning" not found.', Reason.CLAIM_NOT_FOUND, "create it"),
        ('persistentvolumeclaim "tuning" is being deleted', Reason.CLAIM_NOT_FOUND, "being deleted"),
        (
            "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found",
            Reason.CLAIM_PENDING,
            "describe pvc tuning",
        ),
        (
            "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
            Reason.CLAIM_PENDING,
            "storageClassName",
        ),
        ('storageclass.storage.k8s.io "none" not found', Reason.CLAIM_PENDING, '"none"'),
        ("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", Reason.UNSCHEDULABLE, "2 nvidia.com/gpu, 4 CPU"),
        (
            "0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}.",
            Reason.UNSCHEDULABLE,
            "tolerations",
        ),
    ],
)
def test_the_schedulers_words(message: str, reason: str, words: str) -> None:
    child = child_of(pod=make_pod(phase="Pending", scheduled=message))
    stuck = stuck_of(child)
    assert stuck is not None
    assert stuck.reason == reason
    assert words in stuck.message
    assert events_due(child, after(3600)) is None, "the pod's own condition says it all"


@pytest.mark.parametrize(
    ("waiting", "reason", "words"),
    [
        (("ErrImagePull", "failed to resolve"), Reason.IMAGE_PULL_FAILED, "trainer:1"),
        (("ImagePullBackOff", 'Back-off pulling image "trainer:1"'), Reason.IMAGE_PULL_FAILED, "images.*"),
        (("InvalidImageName", "couldn't parse"), Reason.IMAGE_PULL_FAILED, "describe pod faq-train-1"),
        (("ErrImageNeverPull", "not present"), Reason.IMAGE_PULL_FAILED, "trainer:1"),
        (
            ("CreateContainerConfigError", 'secret "llm-tuning-mlflow" not found'),
            Reason.SECRET_NOT_FOUND,
            "kubectl create secret generic llm-tuning-mlflow",
        ),
        (("CreateContainerConfigError", 'configmap "rows" not found'), Reason.CONFIG_MAP_NOT_FOUND, "rows"),
        (
            ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            Reason.CONTAINER_CONFIG_ERROR,
            "as root",
        ),
        (("CreateContainerError", "no command specified"), Reason.CONTAINER_CONFIG_ERROR, "no command"),
    ],
)
def test_why_a_container_waits(waiting: tuple[str, str], reason: str, words: str) -> None:
    stuck = stuck_of(child_of(pod=make_pod(phase="Pending", waiting=waiting)))
    assert stuck is not None
    assert stuck.reason == reason
    assert words in stuck.message


@pytest.mark.parametrize(
    ("event", "message", "reason", "words"),
    [
        ("FailedMount", f'{MOUNT} "dataset" : configmap "rows" not found', Reason.CONFIG_MAP_NOT_FOUND, "faq.json"),
        (
            "FailedMount",
            f'{MOUNT} "dataset" : configmap references non-existent config key: faq.json',
            Reason.CONFIG_MAP_NOT_FOUND,
            "has no key faq.json",
        ),
        ("FailedMount", f'{MOUNT} "x" : secret "llm-tuning-mlflow" not found', Reason.SECRET_NOT_FOUND, "mlflow"),
        (
            "FailedMount",
            f'{MOUNT} "pv" : hostPath type check failed: /none is not a directory',
            Reason.VOLUME_MOUNT_FAILED,
            "/none",
        ),
        ("FailedAttachVolume", "Multi-Attach error for volume", Reason.VOLUME_MOUNT_FAILED, "Multi-Attach"),
        ("FailedCreatePodSandBox", "failed to set up pod network", Reason.POD_CREATION_FAILED, "network"),
    ],
)
def test_events_of_a_pod_that_does_not_start(event: str, message: str, reason: str, words: str) -> None:
    pod = make_pod(phase="Pending", waiting=("ContainerCreating", ""))
    child = child_of(pod=pod, warnings=[make_warning(pod, event, message)])
    stuck = stuck_of(child)
    assert stuck is not None
    assert stuck.reason == reason
    assert words in stuck.message


ONE_POD = (
    "0/1 nodes are available: 1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod "
    "access mode."
)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    ("table", "message", "reason"),
    [
        (SCHEDULING, ONE_POD, Reason.UNSCHEDULABLE),
        (SCHEDULING, "0/2 nodes are available: 2 node(s) had volume node affinity conflict.", Reason.UNSCHEDULABLE),
        (MOUNTING["FailedAttachVolume"], "Multi-Attach error for volume", Reason.VOLUME_MOUNT_FAILED),
    ],
)
def test_a_claim_of_one_node_is_told_where_several_are_to_mount_it(
    table: Table, message: str, reason: str, nodes: int
) -> None:
    spec = make_observed(make_tuning_job(**SPEC)).spec
    assert spec is not None
    asked = replace(STAGE[TRAIN].pod_requests(spec, SETTINGS), nodes=nodes)
    stuck = of_words(table, message, asked)
    assert stuck is not None
    assert stuck.reason == reason
    assert ("(ReadWriteMany)" in stuck.message) == (nodes > 1)


def test_how_many_pods_mount_the_claim_is_that_of_the_training_alone() -> None:
    spec = make_observed(make_tuning_job(**{**SPEC, "resources": {"nodes": 2}})).spec
    assert spec is not None
    assert STAGE[TRAIN].pod_requests(spec, SETTINGS).nodes == 2
    assert STAGE[CHECK].pod_requests(spec, SETTINGS).nodes == 1


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (QUOTA, Reason.QUOTA_EXCEEDED, "exceeded quota: gpus"),
        ("Error creating: failed quota: q: must specify limits.cpu for: trainer", Reason.QUOTA_EXCEEDED, "limits.cpu"),
        (PRIVILEGED, Reason.POD_SECURITY_DENIED, "restricted:latest"),
        (
            'Error creating: pods "faq-train-x" is forbidden: pod rejected: RuntimeClass "nvidia" not found',
            Reason.RUNTIME_CLASS_NOT_FOUND,
            "spec.resources.runtimeClassName: there is no RuntimeClass nvidia",
        ),
        ("Error creating: Internal error occurred: webhook", Reason.POD_CREATION_FAILED, "webhook"),
    ],
)
def test_events_of_a_job_without_pods(message: str, reason: str, words: str) -> None:
    child = child_of(warnings=[make_warning(make_job(), "FailedCreate", message)])
    stuck = stuck_of(child)
    assert stuck is not None
    assert stuck.reason == reason
    assert words in stuck.message
    assert "faq-train-" not in stuck.message, "the pod's name is another at each attempt"


def test_a_claim_whose_volume_cannot_be_made() -> None:
    pod = make_pod(phase="Pending", scheduled=None)
    warnings = [make_warning("tuning", "ProvisioningFailed", "no such pool")]
    stuck = stuck_of(child_of(pod=pod, warnings=warnings))
    assert stuck is not None
    assert stuck.reason == Reason.CLAIM_PENDING
    other = [make_warning("another", "ProvisioningFailed", "no such pool")]
    assert stuck_of(child_of(pod=pod, warnings=other)) is None


def test_a_pod_that_cannot_be_made_again_after_one_was_lost() -> None:
    evicted = make_pod(phase="Failed", exit_code=137, disrupted=True, ended=30, created=20)
    before = make_warning(make_job(), "FailedCreate", QUOTA, at=10)
    assert stuck_of(child_of(pod=evicted, warnings=[before])) is None, "older than the pod"
    stuck = stuck_of(child_of(pod=evicted, warnings=[before, make_warning(make_job(), "FailedCreate", QUOTA, at=31)]))
    assert stuck is not None
    assert stuck.reason == Reason.QUOTA_EXCEEDED


@pytest.mark.parametrize("phase", ["Running", "Succeeded"])
def test_what_has_started_is_not_stuck(phase: str) -> None:
    pod = make_pod(phase=phase)
    child = child_of(pod=pod, warnings=[make_warning(pod, "FailedMount", "was so once")])
    assert stuck_of(child) is None
    assert events_due(child, after(3600)) is None


def test_a_mount_that_has_come_right_is_not_told_while_the_image_is_pulled() -> None:
    pod = make_pod(phase="Pending", waiting=("ContainerCreating", ""))
    pod["status"]["conditions"].append({"type": "PodReadyToStartContainers", "status": "True"})
    child = child_of(pod=pod, warnings=[make_warning(pod, "FailedMount", 'configmap "rows" not found')])
    assert stuck_of(child) is None
    assert events_due(child, after(3600)) is None


def test_the_newest_warning_counts_and_unknown_ones_do_not() -> None:
    pod = make_pod(phase="Pending", waiting=("ContainerCreating", ""))
    warnings = [
        make_warning(pod, "FailedMount", 'configmap "rows" not found', at=10),
        make_warning(pod, "FailedMount", "disk on fire", at=20),
        make_warning(pod, "Unhealthy", "something else", at=30),
    ]
    stuck = stuck_of(child_of(pod=pod, warnings=warnings))
    assert stuck is not None
    assert "on fire" in stuck.message


def test_the_schedulers_second_thoughts_are_left_out() -> None:
    words = (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. no new claims to deallocate, preemption: 0/1 nodes "
        "are available: 1 Preemption is not helpful for scheduling."
    )
    stuck = stuck_of(child_of(pod=make_pod(phase="Pending", scheduled=words)))
    assert stuck is not None
    assert "1 Insufficient nvidia.com/gpu; a trainer asks for" in stuck.message


def test_long_words_of_kubernetes_are_cut() -> None:
    stuck = stuck_of(child_of(pod=make_pod(phase="Pending", scheduled="0/9 nodes are available: " + "x" * 5000)))
    assert stuck is not None
    assert len(stuck.message) < 1024


@pytest.mark.parametrize(
    ("pod", "at", "due"),
    [
        (None, 2, 3),  # a Job's first pod takes a moment
        (None, 65, -60),
        (make_pod(phase="Pending", waiting=("ContainerCreating", "")), 1, 4),
        (make_pod(phase="Pending"), 10, -5),
        (make_pod(phase="Pending", waiting=("ErrImagePull", "")), 10, None),  # a watch tells
        (make_pod(phase="Pending", scheduled=None), 5, 15),
        (make_pod(phase="Failed", exit_code=1, ended=10), 12, 3),
    ],
)
def test_when_events_are_read(pod: Raw | None, at: float, due: float | None) -> None:
    assert events_due(child_of(pod=pod), after(at)) == due


def test_no_events_for_what_is_queued_or_over() -> None:
    late = after(3600)
    assert events_due(child_of(suspended=True), late) is None
    assert events_due(child_of(complete=60), late) is None
    assert events_due(child_of(deleting=True), late) is None
    assert events_due(child_of(role=CHECK), late) is not None


@pytest.mark.parametrize(
    ("role", "named", "unnamed"),
    [
        (CHECK, ("the data check asks for 700m CPU and 3Gi", "dataCheck.cpu and dataCheck.memory"), "16Gi"),
        (TRAIN, ("a trainer asks for 2 nvidia.com/gpu, 4 CPU and 16Gi", "lower spec.resources"), "dataCheck"),
        (REPORT, ("reading the result asks for 100m CPU and 256Mi", "add nodes"), "lower"),
    ],
)
def test_the_remedy_is_of_what_that_pod_asks_for(role: str, named: tuple[str, str], unnamed: str) -> None:
    spec = make_observed(make_tuning_job(**SPEC)).spec
    assert spec is not None
    asked = STAGE[role].pod_requests(spec, SETTINGS.model_copy(update={"check_cpu": "700m", "check_memory": "3Gi"}))
    pending = make_pod(role, phase="Pending", scheduled="0/1 nodes are available: 1 Insufficient cpu.")
    quota = [make_warning(make_job(role), "FailedCreate", QUOTA)]
    for child in (child_of(role=role, pod=pending), child_of(role=role, warnings=quota)):
        stuck = find_stuck(child, asked)
        assert stuck is not None
        assert named[0] in stuck.message
        assert (named[1] if stuck.reason == Reason.UNSCHEDULABLE else "quota raised") in stuck.message
        assert unnamed not in stuck.message
