"""What others add to our pods (a mesh's proxy, an agent) changes nothing of what is said of our own containers."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api.conditions import Reason
from llm_tuning.pod.roles import CHECK, REPORT, TRAIN
from tests.support.desires import VALID, full_condition, wanted
from tests.support.operator_objects import (
    CHECKED,
    SETTINGS,
    START,
    TRAINED,
    Raw,
    after,
    jobs_in,
    make_job,
    make_pod,
    make_tuning_job,
    with_sidecar,
)
from tests.support.service_objects import make_service, make_serving_pod, observe
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.desired import Desired
from tuning_operator.inference_service.desire import desire_service

NAMES = ["aaa-proxy", "datadog-agent", "istio-proxy", "linkerd-proxy", "vault-agent", "zzz"]
"""Before and after check, report, trainer, agent and vllm by name."""
REFUSED = {"ok": False, "reason": "DatasetInvalid", "message": "row 7: prompt is empty"}
every_name = pytest.mark.parametrize("name", NAMES)


def trained(desired: Desired) -> None:
    assert full_condition(desired, "Succeeded")[:2] == ("True", "Succeeded")
    assert desired.status is not None
    assert desired.status["evaluation"]["tunedLoss"] == 1.0


# --- it ends with the work -------------------------------------------------------------------------------------------


@every_name
@pytest.mark.parametrize("kind", ["containers", "initContainers", "ephemeralContainers"])
def test_results_are_of_our_container(name: str, kind: str) -> None:
    check = with_sidecar(make_pod(CHECK, phase="Succeeded", result=CHECKED), name, 0, kind=kind)
    desired = wanted(jobs=[make_job(CHECK, complete=60)], pods=[check])
    assert full_condition(desired, "DatasetValid") == ("True", "DatasetValid", CHECKED["message"])
    trainer = with_sidecar(make_pod(phase="Succeeded", result=TRAINED), name, 0, kind=kind)
    trained(wanted(make_tuning_job(status=VALID), jobs=[make_job(complete=60)], pods=[trainer]))
    report = with_sidecar(make_pod(REPORT, phase="Succeeded", result=TRAINED), name, 0, kind=kind)
    jobs = [make_job(complete=60), make_job(REPORT, complete=60)]
    trained(wanted(make_tuning_job(status=VALID), jobs=jobs, pods=[report]))


@every_name
@pytest.mark.parametrize("ended", [0, 1])
def test_refusals_are_of_our_container(name: str, ended: int) -> None:
    check = with_sidecar(make_pod(CHECK, phase="Failed", exit_code=64, result=REFUSED), name, ended)
    desired = wanted(jobs=[make_job(CHECK, failed="PodFailurePolicy", failures=1)], pods=[check])
    assert full_condition(desired, "Succeeded") == ("False", "DatasetInvalid", "row 7: prompt is empty")
    trainer = with_sidecar(make_pod(phase="Failed", exit_code=64, result="log\nno such folder"), name, ended)
    desired = wanted(
        make_tuning_job(status=VALID), jobs=[make_job(failed="PodFailurePolicy", failures=1)], pods=[trainer]
    )
    assert full_condition(desired, "Succeeded")[1:] == (
        "InvalidInput",
        "exit code 64: no such folder; see `kubectl logs faq-train-1 -c trainer`",
    )


@every_name
@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        ({"exit_code": 137, "reason": "OOMKilled"}, Reason.OUT_OF_MEMORY, "spec.resources.memory"),
        ({"exit_code": 75, "result": {"ok": False, "reason": "Busy", "message": "volume busy"}}, "Busy", "volume busy"),
        ({"exit_code": 1, "result": "ImportError: libx.so"}, Reason.TRAINER_FAILING, "exit code 1: ImportError"),
    ],
)
def test_failed_attempts_are_of_our_container(name: str, pod: Raw, reason: str, words: str) -> None:
    failed = with_sidecar(make_pod(phase="Failed", **pod), name, 0)
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(failures=1)], pods=[failed])
    status, why, message = full_condition(desired, "Stalled")
    assert (status, why) == ("True", reason)
    assert words in message
    running = with_sidecar(make_pod(number=2, created=65), name, "running")
    again = wanted(make_tuning_job(status=VALID), jobs=[make_job(failures=1)], pods=[failed, running])
    assert full_condition(again, "Stalled")[:2] == ("True", reason)
    settled = wanted(make_tuning_job(status=VALID), seconds=130, jobs=[make_job(failures=1)], pods=[failed, running])
    assert full_condition(settled, "Stalled")[0] == "False"


@every_name
def test_a_status_of_ours_that_is_not_written_yet_says_nothing(name: str) -> None:
    for phase in ("Pending", "Running"):
        pod = with_sidecar({**make_pod(), "status": {"phase": phase, "conditions": []}}, name, "running")
        for state in (pod, with_sidecar(pod, "other", 0)):
            desired = wanted(make_tuning_job(status=VALID), seconds=3, jobs=[make_job()], pods=[state])
            assert full_condition(desired, "Finished")[0] == full_condition(desired, "Stalled")[0] == "False"
            assert (jobs_in(desired), desired.delete) == ([], [])


# --- it fails --------------------------------------------------------------------------------------------------------


@every_name
def test_a_training_that_ended_well_is_one_though_a_sidecar_failed(name: str) -> None:
    pod = with_sidecar(make_pod(phase="Failed", result=TRAINED), name, 143)
    for job in (make_job(failures=1), make_job(failures=4, failed="BackoffLimitExceeded")):
        trained(wanted(make_tuning_job(status=VALID), jobs=[job], pods=[pod]))
    check = with_sidecar(make_pod(CHECK, phase="Failed", result=CHECKED), name, 143)
    desired = wanted(jobs=[make_job(CHECK, failures=1)], pods=[check])
    assert full_condition(desired, "DatasetValid")[0] == "True"
    assert [job["metadata"]["name"] for job in jobs_in(desired)] == ["faq-train"]


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_a_sidecar_that_fails_before_ours_begins_is_named(kind: str) -> None:
    never = {**make_pod(phase="Failed"), "status": {"phase": "Failed", "conditions": []}}
    pod = with_sidecar(never, "istio-init", 3, kind=kind)
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job(failures=1)], pods=[pod])
    status, reason, message = full_condition(desired, "Stalled")
    assert (status, reason) == ("True", Reason.SIDECAR_FAILING)
    assert "container istio-init of pod faq-train-1 is not the operator's and has ended with exit code 3" in message
    assert "kubectl logs faq-train-1 -c istio-init" in message


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize(
    ("waits", "reason", "words"),
    [
        (
            {"reason": "ImagePullBackOff", "message": "Back-off"},
            Reason.IMAGE_PULL_FAILED,
            "image proxy:1, which cannot",
        ),
        ({"reason": "CrashLoopBackOff", "message": "back-off 10s"}, Reason.SIDECAR_FAILING, "back-off 10s"),
        ({"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}, Reason.SIDECAR_FAILING, '"x"'),
    ],
)
def test_a_sidecar_that_keeps_the_pod_from_starting_is_named(kind: str, waits: Raw, reason: str, words: str) -> None:
    starting = make_pod(phase="Pending", waiting=("PodInitializing", ""))
    pod = with_sidecar(starting, "proxy", "waiting", kind=kind, **waits)
    status, why, message = full_condition(
        wanted(make_tuning_job(status=VALID), jobs=[make_job()], pods=[pod]), "Stalled"
    )
    assert (status, why) == ("True", reason)
    assert words in message
    assert "container proxy of pod faq-train-1 is not the operator's" in message
    assert "images.*" not in message, "the operator's settings do not help"


def test_of_two_containers_that_cannot_start_ours_is_named() -> None:
    starting = make_pod(phase="Pending", waiting=("ErrImagePull", ""))
    pod = with_sidecar(starting, "aaa", "waiting", reason="ImagePullBackOff")
    desired = wanted(make_tuning_job(status=VALID), jobs=[make_job()], pods=[pod])
    assert "image trainer:1 cannot be pulled" in full_condition(desired, "Stalled")[2]


# --- it never ends ---------------------------------------------------------------------------------------------------


def outlived(role: str = TRAIN, name: str = "istio-proxy", **ended: Any) -> Raw:
    """A pod whose own container has ended at 59 s, in which a sidecar runs on."""
    pod = with_sidecar(make_pod(role, phase="Failed" if ended.get("exit_code") else "Succeeded", **ended), name)
    return {**pod, "status": {**pod["status"], "phase": "Running"}}


@every_name
@pytest.mark.parametrize("code", [0, 1, 64, 75])
def test_a_sidecar_that_runs_on_is_named_within_seconds(name: str, code: int) -> None:
    for role, job in ((CHECK, make_tuning_job()), (TRAIN, make_tuning_job(status=VALID))):
        pod = outlived(role, name, exit_code=code)
        early = wanted(job, seconds=60, jobs=[make_job(role)], pods=[pod])
        assert full_condition(early, "Stalled")[0] == "False", "proxies that end by themselves take a moment"
        assert early.requeue_after == 4
        desired = wanted(job, seconds=65, jobs=[make_job(role)], pods=[pod])
        status, reason, message = full_condition(desired, "Stalled")
        assert (status, reason) == ("True", Reason.SIDECAR_RUNNING)
        assert f"container {name} of pod {pod['metadata']['name']} still runs" in message
        assert f"has ended with exit code {code}" in message
        assert ("kubectl delete pod" in message) == (code in (1, 75))
        assert [(e.type, e.reason) for e in desired.events if e.reason == reason] == [("Warning", reason)]


@every_name
def test_the_result_of_a_training_is_taken_though_a_sidecar_runs_on(name: str) -> None:
    job, pod = make_job(), outlived(name=name, result=TRAINED)
    before = wanted(make_tuning_job(status=VALID), seconds=118, jobs=[job], pods=[pod])
    assert full_condition(before, "Finished")[0] == "False"
    assert before.requeue_after == 1
    desired = wanted(make_tuning_job(status=VALID), seconds=119, jobs=[job], pods=[pod])
    trained(desired)
    assert desired.delete == [], "what is known is written down first"
    again = wanted(make_tuning_job(status=desired.status), seconds=120, jobs=[job], pods=[pod])
    assert [ref.name for ref in again.delete] == ["faq-train"]
    going = make_job(deleting=True)
    assert wanted(make_tuning_job(status=desired.status), seconds=121, jobs=[going], pods=[pod]).delete == []


def test_the_result_of_a_check_is_taken_and_its_job_deleted_once_that_is_recorded() -> None:
    job, pod = make_job(CHECK), outlived(CHECK, result=CHECKED)
    desired = wanted(seconds=120, jobs=[job], pods=[pod])
    assert full_condition(desired, "DatasetValid") == ("True", "DatasetValid", CHECKED["message"])
    assert [made["metadata"]["name"] for made in jobs_in(desired)] == ["faq-train"]
    assert desired.delete == []
    recorded = make_tuning_job(status=VALID)
    world: Raw = {"jobs": [job, make_job(uid="t")], "pods": [pod, make_pod(job_uid="t")]}
    assert [ref.name for ref in wanted(recorded, seconds=121, **world).delete] == ["faq-check"]
    suspended = wanted(make_tuning_job(status=VALID, suspend=True), seconds=121, **world)
    assert [ref.name for ref in suspended.delete] == ["faq-check", "faq-train"], "each once"


def test_a_refusal_is_taken_too() -> None:
    job, pod = make_job(CHECK), outlived(CHECK, exit_code=64, result=REFUSED)
    desired = wanted(seconds=120, jobs=[job], pods=[pod])
    assert full_condition(desired, "Succeeded") == ("False", "DatasetInvalid", "row 7: prompt is empty")
    again = wanted(make_tuning_job(status=desired.status), seconds=121, jobs=[job], pods=[pod])
    assert [ref.name for ref in again.delete] == ["faq-check"]


def test_a_report_whose_sidecar_runs_on_is_read() -> None:
    jobs = [make_job(complete=60), make_job(REPORT)]
    pod = outlived(REPORT, result=TRAINED)
    trained(wanted(make_tuning_job(status=VALID), seconds=120, jobs=jobs, pods=[pod]))


@pytest.mark.parametrize("code", [1, 75, 137])
def test_never_a_second_trainer_beside_a_pod_that_is_still_open(code: int) -> None:
    pod = outlived(exit_code=code)
    desired = wanted(make_tuning_job(status=VALID), seconds=7200, jobs=[make_job()], pods=[pod])
    assert (jobs_in(desired), desired.delete) == ([], [])
    assert full_condition(desired, "Stalled")[:2] == ("True", Reason.SIDECAR_RUNNING)
    without_job = wanted(make_tuning_job(status=VALID), seconds=7200, pods=[pod])
    assert jobs_in(without_job) == []


@pytest.mark.parametrize("kind", ["initContainers", "ephemeralContainers"])
def test_what_the_kubelet_ends_by_itself_keeps_nothing_open(kind: str) -> None:
    pod = with_sidecar(make_pod(phase="Succeeded", result=TRAINED), "proxy", "running", kind=kind)
    pod["status"]["phase"] = "Running"
    desired = wanted(make_tuning_job(status=VALID), seconds=80, jobs=[make_job()], pods=[pod])
    assert full_condition(desired, "Stalled")[0] == "False"


# --- serving ---------------------------------------------------------------------------------------------------------


def service_condition(pod: Raw, seconds: float = 60) -> tuple[str, str, str]:
    desired = desire_service(observe(make_service(), pods=[pod], adapters={}), SETTINGS, after(seconds))
    return full_condition(desired, "Stalled")


@every_name
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_the_end_of_a_serving_container_is_its_own(name: str, kind: str) -> None:
    agent = {"name": "agent", "ready": False, "state": {"terminated": {"exitCode": 1, "message": "KeyError: x"}}}
    pod = with_sidecar(make_serving_pod(ready=False, containerStatuses=[agent]), name, 0, kind=kind)
    status, reason, message = service_condition(pod)
    assert (status, reason) == ("True", "AgentFailing")
    assert "exit code 1" in message
    assert service_condition(with_sidecar(make_serving_pod(ready=False), name, "running", kind=kind))[0] == "False"


@every_name
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_a_sidecar_that_keeps_a_replica_from_being_ready_is_named(name: str, kind: str) -> None:
    waits = {"reason": "CrashLoopBackOff", "message": "back-off 40s"}
    for pod in (
        with_sidecar(make_serving_pod(ready=False), name, "waiting", kind=kind, **waits),
        with_sidecar(make_serving_pod(ready=False), name, 2, kind=kind),
    ):
        status, reason, message = service_condition(pod)
        assert (status, reason) == ("True", Reason.SIDECAR_FAILING)
        assert f"container {name} of pod faq-1 is not the operator's" in message


@every_name
def test_a_sidecar_that_is_never_ready_is_named_once_ours_are(name: str) -> None:
    statuses = [{"name": own, "ready": True, "state": {"running": {}}} for own in ("agent", "vllm")]
    plan = [{"name": "plan", "ready": True, "state": {"terminated": {"exitCode": 0}}}]
    pod = with_sidecar(make_serving_pod(ready=False, containerStatuses=statuses, initContainerStatuses=plan), name)
    assert service_condition(pod, seconds=10)[0] == "False", "a proxy that starts takes a moment"
    status, reason, message = service_condition(pod, seconds=20)
    assert (status, reason) == ("True", Reason.SIDECAR_FAILING)
    assert f"container {name} of pod faq-1 is not the operator's and is not ready" in message
    loading = [statuses[0], {**statuses[1], "ready": False}]
    starting = with_sidecar(make_serving_pod(ready=False, containerStatuses=loading, initContainerStatuses=plan), name)
    assert service_condition(starting, seconds=600)[0] == "False", "a large base takes its time"


def held(pod: Raw, *, initialized: str = "False") -> Raw:
    """`pod` with volumes and network, whose init containers are not all through."""
    added = [
        {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": timestamp(START)},
        {"type": "Initialized", "status": initialized, "lastTransitionTime": timestamp(START)},
    ]
    conditions = [c for c in pod["status"]["conditions"] if c["type"] not in ("Initialized", "Ready")]
    return {**pod, "status": {**pod["status"], "phase": "Pending", "conditions": [*conditions, *added]}}


@every_name
def test_an_init_container_that_does_not_come_to_its_end_is_named(name: str) -> None:
    starting = make_pod(phase="Pending", waiting=("PodInitializing", ""))
    pod = held(with_sidecar(starting, name, kind="initContainers"))
    world: Raw = {"jobs": [make_job()], "pods": [pod]}
    early = wanted(make_tuning_job(status=VALID), seconds=20, **world)
    assert (full_condition(early, "Stalled")[0], early.requeue_after) == ("False", 10)
    status, reason, message = full_condition(wanted(make_tuning_job(status=VALID), seconds=30, **world), "Stalled")
    assert (status, reason) == ("True", Reason.SIDECAR_FAILING)
    assert f"container {name} of pod faq-train-1 is not the operator's and runs, and ours wait" in message
    through = held(with_sidecar(starting, name, kind="initContainers"), initialized="True")
    pulls = wanted(make_tuning_job(status=VALID), seconds=600, jobs=[make_job()], pods=[through])
    assert full_condition(pulls, "Stalled")[0] == "False", "a native sidecar that has started; the image takes its time"


def test_a_replica_whose_plan_takes_its_time_is_not_held_back() -> None:
    plan = {"name": "plan", "state": {"running": {"startedAt": timestamp(START)}}}
    waiting = make_serving_pod(ready=False, initContainerStatuses=[plan])
    assert service_condition(held(waiting), seconds=600)[0] == "False"
    waiting["status"]["initContainerStatuses"].append(
        {"name": "zzz", "state": {"waiting": {"reason": "PodInitializing"}}}
    )
    assert service_condition(held(waiting), seconds=600)[0] == "False"
    plan["state"] = {"terminated": {"exitCode": 0}}
    proxy = {"name": "proxy", "state": {"running": {"startedAt": timestamp(START)}}}
    waiting["status"]["initContainerStatuses"] = [plan, proxy]
    assert service_condition(held(waiting), seconds=600)[1] == Reason.SIDECAR_FAILING
