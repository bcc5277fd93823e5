"""A stage from outside: what it takes to add one, and that the pass, the status and the Events ask the list alone."""

from __future__ import annotations

from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from llm_tuning.api.conditions import Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CheckResult
from llm_tuning.pod.roles import ROLES, PodRole
from tests.support.desires import full_condition
from tests.support.operator_objects import (
    SETTINGS,
    UID,
    Raw,
    after,
    jobs_in,
    labels,
    make_job,
    make_status,
    make_tuning_job,
    with_sidecar,
)
from tuning_operator.core.conditions import TRUE, timestamp
from tuning_operator.core.desired import Desired
from tuning_operator.core.settings import Settings
from tuning_operator.pods.observed import Child
from tuning_operator.pods.template import small_resources
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.job import PodParts
from tuning_operator.tuning_job.observed import Observed, build_observed
from tuning_operator.tuning_job.outcome import result_of
from tuning_operator.tuning_job.stage import JobStage, ResourceRequests, Words
from tuning_operator.tuning_job.stages import STAGES

# --- the stage: this, and its place in the list --------------------------------------------------------------------


class Weighing(StrEnum):
    WEIGHED = "Weighed"


class WeighStage(JobStage):
    """Weigh the base before its data is checked."""

    role = PodRole("weigh", "scales", CheckResult)
    conditions = (Weighing.WEIGHED,)
    work = "the weighing"
    refused = Reason.INVALID_INPUT
    failing = Reason.CHECK_FAILING

    def parts(self, observed: Observed, spec: TuningJobSpec, settings: Settings) -> PodParts:
        return PodParts(image="scales:1", resources=small_resources("1", "2Gi"), reads_dataset=False)

    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        return ResourceRequests(pod="the weighing", resources="1 CPU and 2Gi", lower="buy lighter scales")

    def memory_remedy(self, spec: TuningJobSpec) -> str:
        return "the scales are too small"

    def words(self, child: Child | None) -> Words:
        return Words(Phase.CHECKING, "Weighing", "the base is weighed")

    def end(self, chain: Chain, child: Child) -> bool:
        result = result_of(child, CheckResult)
        chain.draft.conditions.set(Weighing.WEIGHED, TRUE, "Weighed", result.message if result else "")
        return True


CHAIN = (WeighStage(), *STAGES)

# --- what follows from it ----------------------------------------------------------------------------------------


def wanted(raw: Raw | None = None, *, seconds: float = 70, **seen: Any) -> Desired:
    roles = {**ROLES, "weigh": WeighStage.role}
    return desire(build_observed(raw or make_tuning_job(), roles=roles, **seen), SETTINGS, after(seconds), CHAIN)


def pod(phase: str, **terminated: Any) -> Raw:
    ended = {"finishedAt": timestamp(after(59)), **terminated}
    status = {"name": "scales", "state": {"terminated": ended} if terminated else {"running": {}}}
    return {
        "metadata": {
            "name": "faq-weigh-1",
            "namespace": "team",
            "uid": "pod",
            "creationTimestamp": timestamp(after(0)),
            "labels": labels("weigh", UID, "faq"),
            "ownerReferences": [{"kind": "Job", "uid": "job-weigh"}],
        },
        "spec": {"containers": [{"name": "scales", "image": "scales:1"}]},
        "status": {"phase": phase, "conditions": [], "containerStatuses": [status]},
    }


def test_its_job_is_made_before_all_others_and_only_then() -> None:
    desired = wanted(seconds=1)
    (job,) = jobs_in(desired)
    assert job["metadata"]["name"] == "faq-weigh"
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (container["name"], container["command"][-1]) == ("scales", "weigh")
    rule = job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert rule["containerName"] == "scales"
    assert full_condition(desired, "Weighed") == ("Unknown", "Weighing", "the base is weighed")
    assert desired.status is not None
    assert [c["type"] for c in desired.status["conditions"]][:2] == ["Weighed", "DatasetValid"]
    recorded = make_tuning_job(status=make_status(Weighed="True/Weighed"))
    assert [job["metadata"]["name"] for job in jobs_in(wanted(recorded, seconds=2))] == ["faq-check"]


def test_its_result_is_a_condition_and_an_event_and_the_next_stage_begins() -> None:
    good = pod("Succeeded", exitCode=0, message='{"ok": true, "reason": "Weighed", "message": "3 kg"}')
    desired = wanted(jobs=[make_job("weigh", complete=60)], pods=[with_sidecar(good, "aaa-proxy", 0)])
    assert full_condition(desired, "Weighed") == ("True", "Weighed", "3 kg")
    assert [(e.type, e.reason, e.message) for e in desired.events] == [("Normal", "Weighed", "3 kg")]
    assert [job["metadata"]["name"] for job in jobs_in(desired)] == ["faq-check"]


def test_its_failures_have_its_words() -> None:
    heavy = pod("Failed", exitCode=64, message='{"ok": false, "reason": "TooHeavy", "message": "9 t"}')
    refused = wanted(jobs=[make_job("weigh", failed="PodFailurePolicy", failures=1)], pods=[heavy])
    assert full_condition(refused, "Succeeded") == full_condition(refused, "Weighed") == ("False", "TooHeavy", "9 t")
    assert full_condition(refused, "DatasetValid")[1] == "NotReached"
    crushed = pod("Failed", exitCode=137, reason="OOMKilled")
    failing = wanted(jobs=[make_job("weigh", failures=1)], pods=[crushed])
    assert full_condition(failing, "Stalled")[1:] == ("OutOfMemory", "attempt 1 of 4 failed: the scales are too small")
    held = with_sidecar(pod("Running", exitCode=0, message="{}"), "proxy")
    assert "ours (scales) has ended" in full_condition(wanted(jobs=[make_job("weigh")], pods=[held]), "Stalled")[2]
    waits = pod("Pending")
    waits["status"] = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available: 1 Insufficient cpu.",
            }
        ],
    }
    stuck = full_condition(wanted(jobs=[make_job("weigh")], pods=[waits]), "Stalled")
    assert stuck[1] == "Unschedulable"
    assert "the weighing asks for 1 CPU and 2Gi: buy lighter scales" in stuck[2]


def test_without_it_nothing_of_it_is_said() -> None:
    desired = desire(build_observed(make_tuning_job()), SETTINGS, after(1))
    assert desired.status is not None
    assert "Weighed" not in [c["type"] for c in desired.status["conditions"]]


def test_roles_and_stages_are_the_same_in_the_same_order_and_each_role_has_its_module() -> None:
    """What operator and library both need to know of a role stands once."""
    assert [stage.role for stage in STAGES if isinstance(stage, JobStage)] == list(ROLES.values())
    for role in ROLES:
        assert find_spec(f"llm_tuning.pod.{role}") is not None
