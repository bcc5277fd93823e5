"""A training of several pods: its objects, its status, and what it is stuck at."""

from __future__ import annotations

import json

import pytest

from llm_tuning.api.tuning_job import Progress
from llm_tuning.pod.contract import PodInput
from llm_tuning.pod.roles import CHECK
from tests.support.desires import VALID, condition, created, full_condition, message
from tests.support.operator_objects import (
    SETTINGS,
    TRAINED,
    after,
    jobs_in,
    make_job,
    make_observed,
    make_pod,
    make_tuning_job,
)
from tests.support.several_nodes import (
    job,
    pods,
    there,
    wanted,
)
from tuning_operator.core.cache import JOBS, NETWORK_POLICIES, SERVICES
from tuning_operator.core.desired import ObjectRef
from tuning_operator.pods.trouble import Reported, Trouble
from tuning_operator.tuning_job.desire import desire

# --- what is made -----------------------------------------------------------------------------------------------------


def test_pods_come_after_what_they_find_each_other_by() -> None:
    made = wanted(job(), headless=None, policies=())
    assert [(kind, body["metadata"]["name"]) for kind, body in made.create] == [
        (SERVICES, "faq-train"),
        (NETWORK_POLICIES, "faq-nodes"),
        (JOBS, "faq-train"),
    ]
    assert created(wanted(job())) == ["faq-train"]


def test_the_job_is_indexed_ends_with_its_first_failure_and_tells_each_pod_the_others() -> None:
    (body,) = jobs_in(wanted(job(nodes=3)))
    spec, pod = body["spec"], body["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 0
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob"]
    assert pod["subdomain"] == "faq-train"
    (container,) = pod["containers"]
    variables = {entry["name"]: entry for entry in container["env"]}
    given = PodInput.model_validate_json(variables["LLM_TUNING_POD"]["value"])
    assert given.nodes is not None
    assert given.nodes.hosts == ["faq-train-0.faq-train", "faq-train-1.faq-train", "faq-train-2.faq-train"]
    assert variables["LLM_TUNING_ADDRESS"]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert not {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"} & variables.keys()


def test_one_node_has_none_of_it() -> None:
    plain, one = make_tuning_job(status=VALID, resources={"gpus": 2}), job(nodes=1)
    made = [desire(make_observed(raw), SETTINGS, after(70)) for raw in (plain, one)]
    for desired in made:
        assert [kind for kind, _ in desired.create] == [JOBS]
        assert "completionMode" not in jobs_in(desired)[0]["spec"]
        assert "nodes" not in (desired.status or {})
    assert "nodes" not in json.dumps(jobs_in(made[0])[0])


def test_the_check_of_a_training_of_several_pods_is_one_pod() -> None:
    (body,) = jobs_in(wanted(job(status=None), headless=None, policies=()))
    assert body["metadata"]["labels"]["tuning.llmtuning.dev/role"] == CHECK
    assert body["spec"]["completions"] == 1


def test_network_interface_and_rdma_come_from_the_operators_settings() -> None:
    settings = SETTINGS.model_copy(update={"nodes_interface": "net1", "nodes_rdma_resource": "rdma/hca"})
    (body,) = jobs_in(wanted(job(), settings=settings))
    (container,) = body["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert variables["NCCL_SOCKET_IFNAME"] == variables["GLOO_SOCKET_IFNAME"] == "net1"
    for kind in ("requests", "limits"):
        assert container["resources"][kind]["rdma/hca"] == "1"
    (alone,) = jobs_in(wanted(job(nodes=1), settings=settings))
    assert "net1" not in json.dumps(alone)
    assert "rdma" not in json.dumps(alone)


def test_the_service_has_no_address_of_its_own_and_only_the_trainers_of_this_job() -> None:
    service = there(job())["headless"]
    assert service["spec"]["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in service["spec"]  # a name is there while its container runs
    assert service["spec"]["selector"] == {
        "tuning.llmtuning.dev/job-uid": "11111111-2222-3333-4444-555555555555",
        "tuning.llmtuning.dev/role": "train",
    }
    assert service["metadata"]["ownerReferences"][0]["kind"] == "TuningJob"


def test_a_mesh_need_not_guess_what_the_nodes_speak() -> None:
    ports = there(job())["headless"]["spec"]["ports"]
    assert [(port["protocol"], port["appProtocol"]) for port in ports] == [("TCP", "tcp")]


def test_the_pods_of_one_training_reach_each_other_and_nobody_else_reaches_them() -> None:
    (policy,) = there(job())["policies"]
    peers = [{"podSelector": policy["spec"]["podSelector"]}]
    assert policy["spec"]["podSelector"]["matchLabels"]["tuning.llmtuning.dev/role"] == "train"
    assert policy["spec"]["ingress"] == [{"from": peers}]
    assert policy["spec"]["egress"][-1] == {"to": peers}
    assert len(policy["spec"]["egress"]) == 3  # and DNS, and the operator


@pytest.mark.parametrize("kind", ["headless", "policies"])
def test_a_name_that_another_has_is_waited_for_and_no_pod_is_made(kind: str) -> None:
    raw = job()
    found = there(raw)
    other = found[kind] if kind == "headless" else found[kind][0]
    other["metadata"]["ownerReferences"][0] |= {"uid": "another", "name": "another"}
    desired = wanted(raw, **{kind: other if kind == "headless" else [other]})
    assert condition(desired, "Stalled") == ("True", "NameTaken")
    assert not jobs_in(desired)


def test_a_service_that_was_changed_is_put_right() -> None:
    raw = job()
    changed = there(raw)["headless"]
    changed["spec"] = {**changed["spec"], "selector": {}}
    assert [kind for kind, _ in wanted(raw, headless=changed, **pods()).apply] == [SERVICES]


@pytest.mark.parametrize("name", ["faq.v1", "1faq"])
def test_a_name_that_no_service_can_have_is_refused_with_several_nodes_only(name: str) -> None:
    desired = desire(make_observed(job(name=name)), SETTINGS, after(1))
    assert condition(desired, "Stalled") == ("True", "InvalidInput")
    assert f"beginning with a letter, where spec.resources.nodes is above 1, got {name}" in message(desired, "Stalled")
    assert not desired.create
    assert created(desire(make_observed(job(name=name, nodes=1)), SETTINGS, after(1))) == [f"{name}-train"]


def test_slices_of_cards_on_several_nodes_are_refused() -> None:
    settings = SETTINGS.model_copy(update={"gpu_resource": "nvidia.com/mig-1g.10gb"})
    desired = wanted(job(gpus=1), settings=settings)
    assert condition(desired, "Stalled") == ("True", "GPUsNotCombinable")
    assert message(desired, "Stalled").startswith("spec.resources.nodes: must be 1 where a GPU is nvidia.com/mig")


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_the_status_lists_each_pod_with_its_ranks_and_node() -> None:
    second = make_pod(number=2, index=1, phase="Pending", scheduled="0/1 nodes are available: 1 Insufficient cpu")
    first = make_pod(number=1, index=0, node="gpu-7")
    desired = wanted(job(nodes=3), jobs=[make_job(nodes=3)], pods=[first, second])
    assert desired.status is not None
    assert desired.status["nodes"] == [
        {"index": 0, "ranks": "0-1", "pod": "faq-train-1", "node": "gpu-7", "state": "Running"},
        {"index": 1, "ranks": "2-3", "pod": "faq-train-2", "state": "Unschedulable"},
        {"index": 2, "ranks": "4-5", "state": "Missing"},
    ]


def test_a_half_placed_job_says_how_many_of_how_many() -> None:
    second = make_pod(number=2, index=1, phase="Pending", scheduled="0/1 nodes are available: 1 Insufficient cpu")
    desired = wanted(job(), **pods(second=second))
    assert condition(desired, "Stalled") == ("True", "Unschedulable")
    assert message(desired, "Stalled").startswith(
        "1 of 2 pods are placed, that of index 1 is not: no node takes the pod: "
    )
    assert full_condition(desired, "Trained") == (
        "Unknown",
        "Starting",
        "1 of 2 pods run; they train once all do",
    )


def test_each_pod_is_looked_at_and_not_only_the_newest() -> None:
    waiting = make_pod(number=1, index=0, phase="Pending", waiting=("ImagePullBackOff", "back-off"))
    desired = wanted(job(), **pods(first=waiting))
    assert condition(desired, "Stalled") == ("True", "ImagePullFailed")
    assert message(desired, "Stalled").startswith("1 of 2 pods run, that of index 0 does not: image trainer:1")


def test_a_slow_rank_is_told_while_the_pods_run_and_no_longer() -> None:
    said = "rank 1 of 2 on node 1 (faq-train-1.faq-train) is slow: it takes 5 s"
    told = Reported(Progress(percent=5, last_update_time="2026-01-01T00:00:00Z"), waiting=Trouble("SlowRank", said))
    raw = job()
    desired = wanted(raw, **pods(), reported=told)
    assert full_condition(desired, "Reconciling") == ("True", "SlowRank", said)
    assert full_condition(desired, "Trained") == ("Unknown", "SlowRank", said)
    assert ("Warning", "SlowRank", said) in [(e.type, e.reason, e.message) for e in desired.events]
    assert condition(desired, "Stalled")[0] == "False"
    half = pods(second=make_pod(number=2, index=1, phase="Pending"))
    assert condition(wanted(raw, **half, reported=told), "Reconciling")[1] == "Starting"


def test_a_pod_that_has_ended_well_is_not_the_end_before_that_of_index_0() -> None:
    second = make_pod(number=2, index=1, phase="Succeeded", result={**TRAINED, "message": "done"})
    assert condition(wanted(job(), **pods(second=second)), "Finished")[0] == "False"
    first = make_pod(number=1, index=0, phase="Succeeded", result=TRAINED)
    done = wanted(job(), jobs=[make_job(nodes=2, complete=60)], pods=[first, second])
    assert condition(done, "Succeeded") == ("True", "Succeeded")
    assert message(done, "Trained") == "10 steps"


def test_suspending_ends_all_pods_and_makes_none() -> None:
    desired = wanted(job(suspend=True), **pods())
    assert desired.delete == [ObjectRef(JOBS, "faq-train", "job-train")]
    assert not wanted(job(suspend=True), headless=None, policies=()).create
