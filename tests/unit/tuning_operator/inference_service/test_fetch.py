"""An InferenceService whose base is named by URI: what waits, what serves meanwhile, and what is said."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from llm_tuning.api.tuning_job import Progress
from llm_tuning.pod.contract import FetchInput
from llm_tuning.pod.roles import FETCH
from tests.support.desires import condition
from tests.support.operator_objects import SETTINGS, Raw, after, make_job, make_pod
from tests.support.service_objects import SERVICE_UID, make_service, make_serving_pod, observe
from tuning_operator.core.cache import DEPLOYMENTS, JOBS, NETWORK_POLICIES, SERVING
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.desired import Desired
from tuning_operator.inference_service.desire import desire_service
from tuning_operator.inference_service.observed import ObservedService
from tuning_operator.pods.trouble import Reported, Trouble

URI, PATH = "hf://owner/tiny@main", "sources/hf/owner/tiny/abc123"
MODEL = {"uri": URI, "credentialsSecret": {"name": "llm-tuning-hub"}}
FOUND = {"uri": URI, "revision": "abc123", "path": PATH}
RESULT = {"ok": True, "reason": "Fetched", "sources": {"model": {"revision": "abc123", "path": PATH}}}


def desire(observed: ObservedService, seconds: float = 70) -> Desired:
    return desire_service(observed, SETTINGS, after(seconds))


def service(**further: Any) -> Raw:
    return make_service(model=MODEL, **further)


def first() -> Desired:
    return desire(observe(service(), pods=[], adapters={}, applied=False))


def of_kind(desired: Desired, kind: str) -> list[Raw]:
    return [body for made, body in desired.create if made == kind]


def world(*, pod: Raw | None = None, policy: bool = True, **job: Any) -> dict[str, Any]:
    """The Job of the fetch and its pod, as `make_job` and `make_pod` build them."""
    wanted = first()
    name = of_kind(wanted, JOBS)[0]["metadata"]["name"]
    body = make_job(FETCH, owner=SERVICE_UID, uid="job-fetch", **job)
    body["metadata"]["name"] = name
    policies = [each for each in of_kind(wanted, NETWORK_POLICIES) if each["metadata"]["name"] == "faq-serving-fetch"]
    return {
        "pods": [] if pod is None else [pod],
        "fetches": [body],
        "fetch_policy": policies[0] if policy else None,
        "adapters": {},
        "applied": False,
    }


def test_the_base_is_fetched_before_anything_serves() -> None:
    desired = first()
    assert of_kind(desired, DEPLOYMENTS) == []
    assert [kind for kind, _ in desired.create][:2] == [NETWORK_POLICIES, JOBS]
    assert condition(desired) == ("False", "Fetching")
    assert condition(desired, "Reconciling") == ("True", "Fetching")
    assert desired.events == []


def test_the_fetching_pod_is_none_that_answers_and_has_the_credentials() -> None:
    (job,) = of_kind(first(), JOBS)
    (service_part,) = [body for kind, body in first().create if kind == "services"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert not service_part["spec"]["selector"].items() <= labels.items()
    (policy,) = [b for b in of_kind(first(), NETWORK_POLICIES) if b["metadata"]["name"] == "faq-serving-fetch"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert len(job["metadata"]["name"]) <= len("faq") + 23
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = FetchInput.model_validate_json(
        next(entry["value"] for entry in container["env"] if entry["name"] == "LLM_TUNING_FETCH")
    )
    assert (given.sources[0].uri, given.sources[0].credentials) == (URI, "/var/run/llm-tuning-credentials/model")


def test_what_is_whole_is_served_under_the_name_that_its_uri_has() -> None:
    ended = make_pod(FETCH, phase="Succeeded", result=RESULT, job_uid="job-fetch", owner=SERVICE_UID)
    desired = desire(observe(service(), **world(complete=60, pod=ended)))
    (deployment,) = of_kind(desired, DEPLOYMENTS)
    text = json.dumps(deployment)
    assert PATH in text
    assert '\\"tiny\\"' in text
    assert "hf://" not in text
    assert "llm-tuning-hub" not in text
    assert desired.status is not None
    assert desired.status["model"] == FOUND


def test_what_is_recorded_is_not_fetched_again() -> None:
    raw = service(status={"model": FOUND})
    desired = desire(observe(raw, pods=[], adapters={}, applied=False))
    assert of_kind(desired, JOBS) == []
    assert len(of_kind(desired, DEPLOYMENTS)) == 1


def test_while_another_base_is_fetched_the_old_one_serves() -> None:
    old = service(status={"model": FOUND})
    moved = copy.deepcopy(old)
    moved["spec"]["model"] = {"uri": "hf://owner/other"}
    resolved = make_service(model={"path": PATH, "name": "tiny"})
    served = observe(resolved)
    parts = {kind: served.parts[kind] for kind in SERVING if kind in served.parts}
    from dataclasses import replace

    observed = replace(observe(moved, pods=[make_serving_pod()], applied=False), parts=parts)
    desired = desire(observed)
    assert len(of_kind(desired, JOBS)) == 1
    assert [kind for kind, _ in desired.apply] == []
    assert condition(desired) == ("True", "Ready")
    assert condition(desired, "Reconciling") == ("True", "Fetching")
    assert desired.status is not None
    assert desired.status["model"] == FOUND


@pytest.mark.parametrize("reason", ["AccessDenied", "SourceNotFound", "VolumeTooSmall"])
def test_a_fetch_that_failed_says_why_and_begins_anew(reason: str) -> None:
    failed = {"ok": False, "reason": reason, "message": "spec.model.uri: why; what to do"}
    pod = make_pod(FETCH, phase="Failed", exit_code=64, result=failed, job_uid="job-fetch", owner=SERVICE_UID)
    there = world(failed="PodFailurePolicy", pod=pod)
    desired = desire(observe(service(), **there))
    assert condition(desired) == ("False", reason)
    assert condition(desired, "Stalled") == ("True", reason)
    assert desired.delete == []
    later = desire(observe(service(), **there), seconds=60 + 301)
    assert [ref.kind for ref in later.delete] == [JOBS]


def test_a_failed_attempt_is_seen_while_the_job_tries_again() -> None:
    busy = {"ok": False, "reason": "RateLimited", "message": "hf://owner/tiny: asked too often"}
    pod = make_pod(FETCH, phase="Failed", exit_code=75, result=busy, job_uid="job-fetch", owner=SERVICE_UID)
    desired = desire(observe(service(), **world(pod=pod, failures=1)))
    assert condition(desired) == ("False", "RateLimited")


def test_the_fetching_pod_reports_with_a_token_that_is_no_agents() -> None:
    reporting = SETTINGS.model_copy(update={"progress_url": "https://op.ns.svc:8443", "ca_pem": "CERTIFICATE"})
    desired = desire_service(observe(service(), pods=[], adapters={}, applied=False), reporting, after(70))
    ((_, job),) = [made for made in desired.create if made[0] == JOBS]
    template = job["spec"]["template"]
    environment = {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}
    url = "https://op.ns.svc:8443/v1/namespaces/team/inferenceservices/faq/status"
    assert environment["KUBEFLOW_TRAINER_SERVER_URL"] == url
    assert template["metadata"]["annotations"]["tuning.llmtuning.dev/progress-ca"] == "CERTIFICATE"
    (volume,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "reporting"]
    token = volume["projected"]["sources"][0]["serviceAccountToken"]
    assert token["audience"] == f"inferenceservice-fetch.tuning.llmtuning.dev/team/faq/{SERVICE_UID}"


def reported(seconds: float, *, waiting: Trouble | None = None) -> Reported:
    """What a fetch has said of itself so many seconds after the start; its Job is made at the start."""
    return Reported(
        Progress(
            percent=40,
            bytes=4,
            total_bytes=10,
            bytes_per_second=2.0,
            remaining_seconds=3,
            last_update_time=timestamp(after(seconds)),
        ),
        waiting=waiting,
    )


SHOWN = {"percent": 40, "bytes": 4, "totalBytes": 10, "bytesPerSecond": 2.0, "remainingSeconds": 3}


def test_how_far_the_fetch_is_stands_in_the_status_and_goes_with_it() -> None:
    running = make_pod(FETCH, created=30, job_uid="job-fetch", owner=SERVICE_UID)
    desired = desire(observe(service(), **world(pod=running), reported=reported(60)))
    assert desired.status is not None
    assert {name: desired.status["progress"][name] for name in SHOWN} == SHOWN
    assert "step" not in desired.status["progress"]
    assert condition(desired) == ("False", "Fetching")
    restarted = desire(observe(service(status=desired.status), **world(pod=running)))
    assert restarted.status is not None
    assert restarted.status["progress"] == desired.status["progress"]
    ended = make_pod(FETCH, phase="Succeeded", result=RESULT, job_uid="job-fetch", owner=SERVICE_UID)
    served = desire(observe(service(status=desired.status), **world(complete=60, pod=ended), reported=reported(60)))
    assert served.status is not None
    assert "progress" not in served.status


def test_a_report_of_an_earlier_fetch_says_nothing_of_this_one() -> None:
    running = make_pod(FETCH, created=30, job_uid="job-fetch", owner=SERVICE_UID)
    before = service(status={"progress": {**SHOWN, "lastUpdateTime": timestamp(after(-60))}})
    busy = reported(-60, waiting=Trouble("RateLimited", "asked too often"))
    desired = desire(observe(before, **world(pod=running), reported=busy))
    assert desired.status is not None
    assert "progress" not in desired.status
    assert condition(desired) == ("False", "Fetching")


def test_what_it_waits_for_is_a_reason_while_its_pod_runs() -> None:
    running = make_pod(FETCH, created=30, job_uid="job-fetch", owner=SERVICE_UID)
    busy = reported(60, waiting=Trouble("RateLimited", "spec.model.uri: waiting 30 s"))
    desired = desire(observe(service(), **world(pod=running), reported=busy))
    assert condition(desired) == ("False", "RateLimited")
    assert condition(desired, "Stalled") == ("True", "RateLimited")
    assert condition(desire(observe(service(), **world(), reported=busy))) == ("False", "Fetching")


def test_a_path_in_its_place_ends_the_fetch() -> None:
    there = world() | {"fetch_policy": None}
    desired = desire(observe(make_service(), **there))
    assert [ref.name for ref in desired.delete] == [there["fetches"][0]["metadata"]["name"]]


def test_a_job_of_anothers_is_waited_out() -> None:
    there = world()
    there["fetches"][0]["metadata"]["ownerReferences"][0]["uid"] = "another"
    desired = desire(observe(service(), **there))
    assert condition(desired) == ("False", "NameTaken")
    assert of_kind(desired, JOBS) == []
