"""The stage that fetches: what its pod is given, what it lets through, and what the status says until it is over."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from llm_tuning.api.tuning_job import Progress, with_fetched
from llm_tuning.pod.contract import FetchInput, PodInput
from llm_tuning.pod.roles import CHECK, FETCH, TRAIN
from tests.support.desires import condition
from tests.support.operator_objects import (
    SETTINGS,
    Raw,
    after,
    jobs_in,
    make_job,
    make_observed,
    make_pod,
    make_status,
    make_tuning_job,
)
from tuning_operator.core.cache import JOBS, NETWORK_POLICIES
from tuning_operator.core.desired import Desired
from tuning_operator.core.settings import Settings
from tuning_operator.pods.trouble import Reported, Trouble
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.fetch import FetchStage, build_policies

URI = "hf://owner/tiny@main"
PATH = "sources/hf/owner/tiny/abc123"
MODEL: Raw = {"uri": URI, "credentialsSecret": {"name": "llm-tuning-hub"}}
PORTS_OF_DNS = [(53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP")]
FETCHED = {
    "ok": True,
    "reason": "Fetched",
    "message": f"{URI} is at {PATH}",
    "sources": {"model": {"revision": "abc123", "path": PATH, "bytes": 9}},
}
FULL = SETTINGS.model_copy(
    update={
        "progress_url": "https://operator:8443",
        "ca_pem": "PEM",
        "sources_endpoint": "https://hub.example",
        "sources_ca_bundle": "CA",
        "sources_proxy": "http://proxy:3128",
        "sources_credentials_secret": "llm-tuning-default",
    }
)


def job(**spec: Any) -> Raw:
    return make_tuning_job(**{"model": MODEL, **spec})


def fenced(raw: Raw) -> list[Raw]:
    observed = make_observed(raw)
    assert observed.spec is not None, observed.problems
    return build_policies(observed, observed.spec, SETTINGS)


def wanted(raw: Raw, *, seconds: float = 70, settings: Settings = SETTINGS, **observed: Any) -> Desired:
    observed.setdefault("policies", fenced(raw))
    return desire(make_observed(raw, **observed), settings, after(seconds))


def at_work(**pod: Any) -> dict[str, Any]:
    return {"jobs": [make_job(FETCH)], "pods": [make_pod(FETCH, **pod)]}


def environment(body: Raw) -> dict[str, str]:
    (container,) = body["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


# --- first the fence, then the pod -----------------------------------------------------------------------------------


def test_the_policies_are_there_before_the_pod() -> None:
    desired = wanted(job(), policies=())
    assert [(kind, body["metadata"]["name"]) for kind, body in desired.create] == [
        (NETWORK_POLICIES, "faq-fetch"),
        (NETWORK_POLICIES, "faq-offline"),
        (JOBS, "faq-fetch"),
    ]


def test_without_a_uri_there_is_no_fetch_and_no_policy() -> None:
    desired = wanted(make_tuning_job(), policies=())
    assert [body["metadata"]["name"] for _, body in desired.create] == ["faq-check"]
    assert desired.status is not None
    assert "Fetched" not in {c["type"] for c in desired.status["conditions"]}


def test_only_the_fetching_pod_may_leave_the_cluster() -> None:
    online, offline = (policy["spec"] for policy in fenced(job()))
    uid = make_tuning_job()["metadata"]["uid"]
    assert online["podSelector"] == {
        "matchLabels": {"tuning.llmtuning.dev/job-uid": uid, "tuning.llmtuning.dev/role": "fetch"}
    }
    assert {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]} in [
        peer.get("ipBlock") for rule in online["egress"] for peer in rule.get("to", ())
    ]
    (excluded,) = offline["podSelector"]["matchExpressions"]
    assert (excluded["operator"], excluded["values"]) == ("NotIn", ["fetch"])
    assert "ipBlock" not in json.dumps(offline)
    for policy in (online, offline):
        (names,) = (rule["ports"] for rule in policy["egress"] if "to" not in rule)
        assert [(each["port"], each["protocol"]) for each in names] == PORTS_OF_DNS
    assert all("ports" not in rule for rule in online["egress"] if "to" in rule), "a hub or a proxy may have any port"
    assert (online["ingress"], offline["ingress"]) == ([], [])


@pytest.mark.parametrize(
    ("uri", "outside"),
    [
        ("http://mlflow:5000", []),
        ("http://mlflow.mlops.svc.cluster.local:5000", []),
        ("http://mlflow.mlops:5000", [443, 5000]),  # or mlflow.corp, a host outside
        ("http://mlflow.svc.example.com:5000", [443, 5000]),
        ("http://mlflow.example.com:5000", [443, 5000]),
        ("http://mlflow.example.com", [80, 443]),
        ("https://mlflow.example.com", [443]),
    ],
)
def test_the_tracking_server_stays_in_reach(uri: str, outside: list[int]) -> None:
    _, offline = fenced(job(tracking={"uri": uri}))
    cluster, *rest = offline["spec"]["egress"][2:]
    assert cluster == {"to": [{"namespaceSelector": {}}]}, "an ingress listens on a port of its own"
    assert [[each["port"] for each in rule["ports"]] for rule in rest] == ([outside] if outside else [])


def test_a_policy_that_was_changed_is_put_right_and_anothers_is_left() -> None:
    loose = fenced(job())
    loose[1]["spec"]["egress"] = [{}]
    desired = wanted(job(), policies=loose)
    assert [body["metadata"]["name"] for _, body in desired.apply] == ["faq-offline"]
    others = fenced(job())
    others[0]["metadata"]["ownerReferences"][0] |= {"uid": "another", "name": "another"}
    taken = wanted(job(), policies=others)
    assert condition(taken, "Stalled") == ("True", "NameTaken")
    assert jobs_in(taken) == []


def test_a_policy_of_a_namesake_that_was_deleted_is_waited_for() -> None:
    left = fenced(job())
    left[0]["metadata"]["ownerReferences"][0]["uid"] = "before"
    waiting = wanted(job(), policies=left)
    assert condition(waiting, "Stalled")[0] == "False"
    assert jobs_in(waiting) == []


def test_a_refused_policy_keeps_the_pod_away_and_is_told() -> None:
    refused = replace(make_observed(job()), refusals={NETWORK_POLICIES: "forbidden"})
    desired = desire(refused, SETTINGS, after(70))
    assert jobs_in(desired) == []
    assert condition(desired, "Stalled") == ("True", "PodCreationFailed")


# --- the pod ---------------------------------------------------------------------------------------------------------


def test_the_pod_is_told_what_to_fetch_and_has_its_credentials_as_files() -> None:
    (body,) = jobs_in(wanted(job(), settings=FULL))
    given = FetchInput.model_validate_json(environment(body)["LLM_TUNING_FETCH"])
    (source,) = given.sources
    assert (source.field, source.uri, source.revision) == ("model", URI, None)
    volumes = {volume["name"]: volume for volume in body["spec"]["template"]["spec"]["volumes"]}
    assert volumes["credentials-model"]["secret"] == {"secretName": "llm-tuning-hub"}
    assert "serviceAccountToken" in str(volumes["reporting"])
    assert "envFrom" not in str(body)
    assert "nvidia.com/gpu" not in str(body)


def test_the_pod_gets_the_charts_endpoint_proxy_and_authorities() -> None:
    (body,) = jobs_in(wanted(job(), settings=FULL))
    found = environment(body)
    assert (found["HF_ENDPOINT"], found["HTTPS_PROXY"]) == ("https://hub.example", "http://proxy:3128")
    assert "HF_HUB_OFFLINE" not in found
    assert body["spec"]["template"]["metadata"]["annotations"]["tuning.llmtuning.dev/sources-ca"] == "CA"
    assert FetchInput.model_validate_json(found["LLM_TUNING_FETCH"]).ca_file == "/var/run/llm-tuning-sources/ca.crt"


def test_a_source_without_a_secret_gets_the_charts_where_there_is_one() -> None:
    raw = job(dataset={"uri": "s3://bucket/faq.json"})
    (body,) = jobs_in(wanted(raw, settings=FULL))
    volumes = {volume["name"]: volume for volume in body["spec"]["template"]["spec"]["volumes"]}
    assert volumes["credentials-dataset"]["secret"] == {"secretName": "llm-tuning-default", "optional": True}
    given = FetchInput.model_validate_json(environment(body)["LLM_TUNING_FETCH"])
    assert [source.credentials for source in given.sources] == [
        "/var/run/llm-tuning-credentials/model",
        "/var/run/llm-tuning-credentials/dataset",
    ]


# --- what is seen of it ----------------------------------------------------------------------------------------------


def test_the_revision_is_noted_at_first_sight_and_no_other_after_it() -> None:
    progress = Progress(percent=1, bytes=1, total_bytes=100, last_update_time="t")
    told = Reported(progress, revisions={"model": "abc123"})
    first = wanted(job(), **at_work(), reported=told)
    assert first.status is not None
    assert first.status["model"] == {"uri": URI, "revision": "abc123"}
    assert first.status["progress"]["totalBytes"] == 100
    moved = Reported(progress, revisions={"model": "another"})
    again = wanted(make_tuning_job(model=MODEL, status=first.status), **at_work(), reported=moved)
    assert again.status is not None
    assert again.status["model"]["revision"] == "abc123"
    (body,) = jobs_in(wanted(make_tuning_job(model=MODEL, status=first.status)))
    given = FetchInput.model_validate_json(environment(body)["LLM_TUNING_FETCH"])
    assert given.sources[0].revision == "abc123"


def test_what_it_waits_for_is_a_reason_and_goes_with_the_next_report() -> None:
    progress = Progress(percent=1, bytes=1, total_bytes=100, last_update_time="t")
    waiting = Reported(progress, waiting=Trouble("RateLimited", "spec.model.uri: waiting 40 s"))
    desired = wanted(job(), **at_work(), reported=waiting)
    assert condition(desired, "Fetched") == ("Unknown", "RateLimited")
    assert condition(desired, "Stalled") == ("True", "RateLimited")
    assert [event.reason for event in desired.events if event.type == "Warning"] == ["RateLimited"]
    going = wanted(make_tuning_job(model=MODEL, status=desired.status), **at_work(), reported=Reported(progress))
    assert condition(going, "Fetched") == ("Unknown", "Fetching")
    assert condition(going, "Stalled") == ("False", "NotStalled")


@pytest.mark.parametrize("reason", ["SourceNotFound", "AccessDenied", "UnsafeFormat", "HashMismatch", "VolumeTooSmall"])
def test_what_no_retry_changes_is_the_end(reason: str) -> None:
    failed = {"ok": False, "reason": reason, "message": "spec.model.uri: why; what to do"}
    world = {
        "jobs": [make_job(FETCH, failed="PodFailurePolicy")],
        "pods": [make_pod(FETCH, phase="Failed", exit_code=64, result=failed)],
    }
    desired = wanted(job(), **world)
    assert condition(desired, "Fetched") == ("False", reason)
    assert condition(desired, "Succeeded") == ("False", reason)
    assert condition(desired, "DatasetValid") == ("False", "NotReached")


# --- its end ---------------------------------------------------------------------------------------------------------


def done(**spec: Any) -> Desired:
    world = {
        "jobs": [make_job(FETCH, complete=60)],
        "pods": [make_pod(FETCH, phase="Succeeded", result=FETCHED)],
    }
    return wanted(job(**spec), **world)


def test_the_next_stage_has_the_path_and_knows_no_uri() -> None:
    desired = done()
    assert [body["metadata"]["name"] for body in jobs_in(desired)] == ["faq-check"]
    assert condition(desired, "Fetched") == ("True", "Fetched")
    assert desired.status is not None
    assert desired.status["model"] == {"uri": URI, "revision": "abc123", "path": PATH}
    text = environment(jobs_in(desired)[0])["LLM_TUNING_POD"]
    given = PodInput.model_validate_json(text)
    assert given.spec.model.path == PATH
    assert "hf://" not in text
    assert "llm-tuning-hub" not in json.dumps(jobs_in(desired)[0])


def test_after_it_the_bytes_are_no_progress_of_the_training() -> None:
    told = Reported(Progress(percent=100, bytes=9, total_bytes=9, last_update_time="t"))
    status = done().status
    desired = wanted(make_tuning_job(model=MODEL, status=status), jobs=[make_job(CHECK)], pods=[], reported=told)
    assert desired.status is not None
    assert "progress" not in desired.status


def test_the_name_of_the_base_is_the_repositorys_over_the_whole_chain() -> None:
    status = done().status
    assert status is not None
    assert status["modelId"].startswith("ft_sft_tiny_")
    valid = make_status(DatasetValid="True/DatasetValid")["conditions"]
    others = [each for each in status["conditions"] if each["type"] != "DatasetValid"]
    checked = {**status, "conditions": [*others, *valid]}
    later = wanted(make_tuning_job(model=MODEL, status=checked))
    given = PodInput.model_validate_json(environment(jobs_in(later)[0])["LLM_TUNING_POD"])
    assert given.model_id == status["modelId"]
    assert [body["metadata"]["name"] for body in jobs_in(later)] == [f"faq-{TRAIN}"]


def test_a_result_that_is_gone_is_asked_for_again() -> None:
    long_ago = {"jobs": [make_job(FETCH, complete=60)], "pods": []}
    desired = wanted(job(), seconds=600, **long_ago)
    assert [ref.name for ref in desired.delete] == ["faq-fetch"]
    assert condition(desired, "Fetched")[0] == "Unknown"


def test_a_spec_with_paths_is_as_one_would_give_it() -> None:
    observed = make_observed(job(dataset={"uri": "s3://b0b/faq.json", "skipInvalidRows": True}))
    assert observed.spec is not None
    spec = with_fetched(observed.spec, model_path=PATH, dataset_path="sources/s3/x/faq.json")
    assert json.loads(spec.model_dump_json(by_alias=True, exclude_unset=True, include={"model", "dataset"})) == {
        "model": {"path": PATH},
        "dataset": {"path": "sources/s3/x/faq.json", "skipInvalidRows": True},
    }


def test_the_stage_is_of_specs_with_a_uri() -> None:
    assert FetchStage().applies(make_observed(job()))
    assert FetchStage().applies(make_observed(make_tuning_job(dataset={"uri": "https://h/faq.json"})))
    assert not FetchStage().applies(make_observed(make_tuning_job()))
