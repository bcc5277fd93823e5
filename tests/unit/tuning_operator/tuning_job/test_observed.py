from __future__ import annotations

from llm_tuning.api.conditions import ConditionType
from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.operator_objects import (
    UID,
    after,
    make_job,
    make_observed,
    make_pod,
    make_status,
    make_tuning_job,
    make_warning,
)
from tuning_operator.pods.observed import event_time


def test_a_child_has_its_own_pods_oldest_first() -> None:
    old, new = make_pod(number=2, created=5), make_pod(number=1, created=9)
    other = make_pod(CHECK)
    observed = make_observed(jobs=[make_job(), make_job(CHECK)], pods=[new, other, old])
    assert [pod.name for pod in observed.children[TRAIN].pods] == ["faq-train-2", "faq-train-1"]
    assert [pod.name for pod in observed.children[CHECK].pods] == ["faq-check-1"]


def test_pods_of_an_earlier_job_of_the_name_are_not_the_childs_but_still_live() -> None:
    observed = make_observed(jobs=[make_job()], pods=[make_pod(job_uid="gone")])
    assert observed.children[TRAIN].pods == ()
    assert observed.live_pods == (TRAIN,)
    assert make_observed(pods=[make_pod(phase="Failed", exit_code=1)]).live_pods == ()


def test_a_childs_role_follows_from_its_name_even_without_labels() -> None:
    job = make_job()
    job["metadata"]["labels"] = {}
    assert set(make_observed(jobs=[job]).children) == {TRAIN}


def test_a_job_of_another_owner_is_never_adopted() -> None:
    foreign = make_job(owner="somebody", owner_name="other")
    observed = make_observed(jobs=[foreign])
    assert observed.children == {}
    assert (observed.taken, observed.left_over) == (("faq-train",), ())


def test_what_a_deleted_namesake_left_over_goes_by_itself() -> None:
    namesakes = make_job(owner="earlier")
    assert make_observed(jobs=[namesakes]).left_over == ("faq-train",)
    deleted = make_job(owner="somebody", owner_name="other", deleting=True)
    assert make_observed(jobs=[deleted]).left_over == ("faq-train",)


def test_warnings_are_found_by_object_newest_first() -> None:
    job, pod, stranger = make_job(), make_pod(), make_pod(number=7)
    warnings = [
        make_warning(pod, "FailedMount", "second", at=20),
        make_warning(stranger, "FailedMount", "not ours"),
        make_warning(pod, "FailedMount", "first", at=10),
        make_warning(job, "FailedCreate", "of the job"),
        make_warning("tuning", "ProvisioningFailed", "of the claim"),
        make_warning("another", "ProvisioningFailed", "of another claim"),
    ]
    child = make_observed(jobs=[job], pods=[pod], warnings=warnings).children[TRAIN]
    assert [w["message"] for w in child.warnings_about(uid="pod-train-1")] == ["second", "first"]
    assert [w["message"] for w in child.warnings_about(uid="job-train")] == ["of the job"]
    assert [w["message"] for w in child.warnings_about(claim="tuning")] == ["of the claim"]
    assert "not ours" not in [w["message"] for w in child.warnings]


def test_the_time_of_an_event_in_every_form_that_kubernetes_has() -> None:
    created = {"metadata": {"creationTimestamp": "2026-01-02T03:04:05Z"}}
    assert event_time(created) == after(0)
    assert event_time(created | {"eventTime": "2026-01-02T03:04:06.5Z", "lastTimestamp": None}) == after(1.5)
    assert event_time(created | {"series": {"lastObservedTime": "2026-01-02T03:04:15.000000Z"}}) == after(10)
    assert event_time({"metadata": {}}).year == 1970


def test_disruptions_are_no_failures() -> None:
    pods = [make_pod(number=1, phase="Failed", exit_code=137, disrupted=True), make_pod(number=2, phase="Failed")]
    child = make_observed(jobs=[make_job()], pods=pods).children[TRAIN]
    assert [pod.name for pod in child.failed_pods] == ["faq-train-2"]
    assert child.failures == 1


def test_the_start_adapters_job() -> None:
    job = make_tuning_job(model={"path": "b", "adapter": {"tuningJob": "first"}})
    missing = make_observed(job).adapter
    assert missing is not None
    assert (missing.exists, missing.finished) == (False, False)
    there = make_observed(job, adapter=make_tuning_job("first")).adapter
    assert there is not None
    assert (there.exists, there.finished, there.model_id) == (True, False, None)
    done = make_tuning_job("first", status=make_status(Finished="True", Succeeded="True"))
    succeeded = make_observed(job, adapter=done).adapter
    assert succeeded is not None
    assert succeeded.succeeded
    assert succeeded.model_id == done["status"]["modelId"]
    assert make_observed().adapter is None


def test_a_spec_that_does_not_parse_leaves_its_problems() -> None:
    observed = make_observed(make_tuning_job(lora={"rank": 0}))
    assert observed.spec is None
    assert "spec.lora.rank" in str(observed.problems[0])


def test_a_status_of_another_version_is_read() -> None:
    status = make_status(Trained="True", Served="True") | {"newField": {"a": 1}}
    observed = make_observed(make_tuning_job(status=status))
    assert observed.holds(ConditionType.TRAINED)
    assert not observed.holds(ConditionType.FINISHED)
    assert (observed.uid, observed.namespace, observed.generation) == (UID, "team", 1)
