"""What is said and wanted of an InferenceService, by what is there."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from llm_tuning.agent.contract import AdapterReport
from llm_tuning.api.inference_service import InferenceServiceSpec
from tests.support.desires import condition, message
from tests.support.operator_objects import SETTINGS, Raw, after, make_status, make_tuning_job
from tests.support.service_objects import FINISHED_JOB, make_service, make_serving_pod, observe, told
from tuning_operator.core.cache import BUDGETS, CONFIG_MAPS, DEPLOYMENTS, NETWORK_POLICIES, SERVICES
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.inference_service.desire import desire_service
from tuning_operator.inference_service.observed import ObservedService
from tuning_operator.inference_service.routes import routes_of

TWO = make_service(replicas=2)
PODS = [make_serving_pod("faq-1"), make_serving_pod("faq-2")]


def desire(observed: ObservedService, seconds: float = 60) -> Desired:
    return desire_service(observed, SETTINGS, after(seconds))


def test_first_it_is_made_in_an_order_in_which_nothing_is_missing() -> None:
    desired = desire(observe(TWO, pods=[], adapters={}, applied=False))
    assert [kind for kind, _ in desired.create] == [CONFIG_MAPS, SERVICES, NETWORK_POLICIES, BUDGETS, DEPLOYMENTS]
    assert condition(desired) == ("False", "Starting")
    assert desired.events == []


def test_all_well_is_ready_and_nothing_is_written_again() -> None:
    desired = desire(observe(TWO, pods=PODS))
    assert (desired.create, desired.apply, desired.delete) == ([], [], [])
    assert condition(desired) == ("True", "Ready")
    assert condition(desired, "AdaptersLoaded") == ("True", "Loaded")
    assert condition(desired, "AdaptersEffective") == ("True", "Effective")
    assert condition(desired, "Reconciling")[0] == condition(desired, "Stalled")[0] == "False"
    assert desired.status is not None
    assert desired.status["adapters"] == [
        {
            "modelId": "ft_a",
            "loadedReplicas": 2,
            "effective": "True",
            "reason": "Effective",
            "message": "Effective, it says",
        }
    ]
    assert (desired.status["url"], desired.status["readyReplicas"]) == ("http://faq.team.svc", 2)
    again = desire(observe({**TWO, "status": desired.status}, pods=PODS), seconds=3600)
    assert again.status == desired.status
    assert again.events == []


BAD: dict[str, tuple[AdapterReport, str, str]] = {
    "no effect": (told(effective="False", reason="NoEffect"), "NoEffect", "False"),
    "different": (told(effective="False", reason="Different"), "Different", "False"),
    "rank": (told(effective="False", reason="RankTooHigh", loaded=False), "RankTooHigh", "False"),
    "loading": (told(effective="Unknown", reason="Loading", loaded=False, settled=False), "Loading", "Unknown"),
    "proving": (told(effective="Unknown", reason="Proving", settled=False), "Proving", "Unknown"),
    "refused": (told(effective="Unknown", reason="LoadFailed", loaded=False), "LoadFailed", "Unknown"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_replica_that_does_not_have_it_right_is_enough(case: str) -> None:
    bad, reason, effective = BAD[case]
    desired = desire(observe(TWO, pods=PODS, adapters={"faq-1": [told()], "faq-2": [bad]}))
    assert condition(desired) == ("False", reason)
    assert desired.status is not None
    (adapter,) = desired.status["adapters"]
    assert (adapter["effective"], adapter["reason"]) == (effective, reason)
    assert adapter["message"].startswith("faq-2: "), "which one it is about"
    assert adapter["loadedReplicas"] == 1 + bad.loaded


@pytest.mark.parametrize("reason", ["TooSmallToTell", "CannotBeProven"])
def test_what_cannot_be_told_is_said_and_does_not_block(reason: str) -> None:
    desired = desire(observe(adapters={"faq-1": [told(effective="Unknown", reason=reason)]}))
    assert condition(desired) == ("True", "Ready")
    assert condition(desired, "AdaptersEffective") == ("Unknown", reason)


def test_a_ready_pod_that_has_told_nothing_is_not_trusted() -> None:
    desired = desire(observe(TWO, pods=PODS, adapters={"faq-1": [told()]}))
    assert condition(desired) == ("False", "NoReport")
    assert "faq-2" in message(desired)


def test_after_a_start_of_the_operator_nothing_is_written_until_agents_could_report() -> None:
    observed = observe(adapters={}, reports_due=True)
    desired = desire(observed)
    assert desired.status is None
    assert desired.requeue_after is not None
    assert routes_of(observed) is not None, "but the agents get their routes"


def test_replicas_that_do_not_know_the_newest_routes_are_not_ready() -> None:
    desired = desire(observe(revision="older"))
    assert condition(desired) == ("False", "Loading")


@pytest.mark.parametrize(
    ("deployment", "pods", "reason"),
    [
        ({"updatedReplicas": 1}, PODS, "Rolling"),
        ({"observedGeneration": 0}, PODS, "Rolling"),
        ({}, [*PODS, make_serving_pod("faq-old")], "Rolling"),
        ({}, [PODS[0], make_serving_pod("faq-2", ready=False)], "ReplicasNotReady"),
        ({}, [make_serving_pod("faq-1", ready=False), make_serving_pod("faq-2", ready=False)], "Starting"),
    ],
)
def test_replicas_on_their_way(deployment: Raw, pods: list[Raw], reason: str) -> None:
    desired = desire(observe(TWO, pods=pods, deployment=deployment))
    assert condition(desired) == ("False", reason)
    assert condition(desired, "Reconciling")[0] == "True"


def test_no_replicas_are_no_promise() -> None:
    desired = desire(observe(make_service(replicas=0), pods=[], adapters={}))
    assert condition(desired) == ("False", "NoReplicas")
    assert condition(desired, "Reconciling")[0] == "False"


def test_without_routes_the_base_alone_is_ready() -> None:
    desired = desire(observe(make_service(routes=[]), adapters={"faq-1": []}))
    assert condition(desired) == ("True", "Ready")
    assert condition(desired, "AdaptersEffective") == ("True", "NoAdapters")


# --- targets by TuningJob ------------------------------------------------------------------------------------------

BY_JOB = [{"name": "support", "targets": [{"tuningJob": "faq"}]}]


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (None, "TuningJobNotFound"),
        (make_tuning_job(status=make_status(Trained="Unknown/Training")), "WaitingForTuningJob"),
        (make_tuning_job(status=make_status(Finished="True", Succeeded="False/RetriesExhausted")), "TuningJobFailed"),
    ],
)
def test_a_target_without_an_adapter_says_why(job: Raw | None, reason: str) -> None:
    observed = observe(make_service(routes=BY_JOB), jobs={"faq": job})
    assert condition(desire(observed)) == ("False", reason)
    routes = routes_of(observed)
    assert routes is not None
    (target,) = routes.routes[0].targets
    assert (target.model_id, target.reason) == (None, reason), "and the agents say it to clients"


def test_the_adapter_of_a_job_that_succeeded_is_attached() -> None:
    raw = make_service(routes=BY_JOB)
    observed = observe(raw, jobs={"faq": FINISHED_JOB}, adapters={"faq-1": [told("ft_of_job")]})
    desired, routes = desire(observed), routes_of(observed)
    assert routes is not None
    assert routes.model_ids == ["ft_of_job"]
    assert condition(desired) == ("True", "Ready")
    assert desired.apply == [], "attaching touches no part but the cold-start copy, which is there already"
    # The TuningJob goes: what it was resolved to is in the status.
    assert routes_of(observe({**raw, "status": desired.status}, jobs={"faq": None})) == routes
    # It is made again, and trains: the old adapter serves until there is a new one.
    training = make_tuning_job(status={**make_status(Trained="Unknown/Training"), "modelId": "ft_new"})
    assert routes_of(observe({**raw, "status": desired.status}, jobs={"faq": training})) == routes


# --- parts ---------------------------------------------------------------------------------------------------------


def test_changed_routes_change_the_cold_start_copy_and_no_pod() -> None:
    before = observe()
    after_change = observe(make_service(routes=[{"name": "other", "targets": [{"modelId": "ft_b"}]}]))
    changed = ObservedService(
        raw=after_change.raw, spec=after_change.spec, parts=before.parts, pods=before.pods, jobs={}
    )
    assert [kind for kind, _ in desire(changed).apply] == [CONFIG_MAPS]


@pytest.mark.parametrize(
    "spec", [{"vllm": {"maxModelLen": 64}}, {"resources": {"memory": "32Gi"}}, {"model": {"path": "base/other"}}]
)
def test_another_engine_is_a_rollout(spec: dict[str, Any]) -> None:
    before, new = observe(), observe(make_service(**spec))
    changed = ObservedService(raw=new.raw, spec=new.spec, parts=before.parts, pods=before.pods, jobs={})
    (applied,) = [body for kind, body in desire(changed).apply if kind == DEPLOYMENTS]
    assert applied["spec"]["template"] != before.parts[DEPLOYMENTS]["spec"]["template"]


def test_what_somebody_changed_is_put_right_and_what_the_server_adds_is_not() -> None:
    observed = observe()
    parts = copy.deepcopy(dict(observed.parts))
    parts[DEPLOYMENTS]["spec"]["template"]["spec"]["dnsPolicy"] = "ClusterFirst"
    parts[DEPLOYMENTS]["spec"]["template"]["spec"]["containers"][1]["resources"]["requests"]["cpu"] = "2000m"
    same = ObservedService(raw=observed.raw, spec=observed.spec, parts=parts, pods=observed.pods)
    assert desire(same).apply == []
    parts[DEPLOYMENTS]["spec"]["replicas"] = 7
    assert [kind for kind, _ in desire(same).apply] == [DEPLOYMENTS]


def test_what_is_no_longer_wanted_is_taken_away() -> None:
    """The field is in the cluster still, so that only the digest tells."""
    before, new = observe(make_service(resources={"nodeSelector": {"gpu": "yes"}})), observe()
    changed = ObservedService(raw=new.raw, spec=new.spec, parts=before.parts, pods=before.pods, jobs={})
    assert [kind for kind, _ in desire(changed).apply] == [DEPLOYMENTS]


@pytest.mark.parametrize("change", [lambda rows: rows.pop(), lambda rows: rows.append({"name": "X", "value": "1"})])
def test_a_list_that_became_shorter_or_longer_is_put_right(change: Any) -> None:
    observed = observe()
    parts = copy.deepcopy(dict(observed.parts))
    change(parts[DEPLOYMENTS]["spec"]["template"]["spec"]["containers"][1]["env"])
    there = ObservedService(raw=observed.raw, spec=observed.spec, parts=parts, pods=observed.pods)
    assert [kind for kind, _ in desire(there).apply] == [DEPLOYMENTS]


def test_one_replica_needs_no_disruption_budget() -> None:
    two = observe(TWO, pods=PODS)
    parts = {kind: {**part, "metadata": {**part["metadata"], "uid": f"uid-{kind}"}} for kind, part in two.parts.items()}
    one = make_service()
    changed = ObservedService(raw=one, spec=observe(one).spec, parts=parts, pods=two.pods)
    assert desire(changed).delete == [ObjectRef(BUDGETS, "faq", f"uid-{BUDGETS}")]


def test_a_name_of_somebody_elses_is_left_alone() -> None:
    observed = observe()
    parts = {kind: part for kind, part in observed.parts.items() if kind != SERVICES}
    taken = ObservedService(raw=observed.raw, spec=observed.spec, parts=parts, taken=(SERVICES,), pods=observed.pods)
    desired = desire(taken)
    assert desired.create == []
    assert condition(desired, "Stalled") == ("True", "NameTaken")
    assert message(desired, "Stalled").startswith("services/faq exists already and belongs to another owner")


# --- stuck ---------------------------------------------------------------------------------------------------------


def ended(name: str, code: int, text: str, reason: str = "Error") -> Raw:
    return {
        "name": name,
        "ready": False,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": code, "reason": reason, "message": text}},
    }


LOG = """INFO starting
ValueError: To serve at least one request with the model's max seq len (4096), 8 GiB KV cache is needed
  File "x.py", line 3"""

PYDANTIC = """(APIServer pid=1) INFO 11-29 08:00:00 [utils.py:299] non-default args: {}
(APIServer pid=1)   File "/x/arg_utils.py", line 2, in create_model_config
(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=1)   Value error, User-specified max_model_len (1000000) is greater than the derived max_model_len
(APIServer pid=1)     For further information visit https://errors.pydantic.dev/2.12/v/value_error
"""

SHARED_CARD = """ValueError: Free memory on device cuda:0 (30.1/79.1 GiB) on startup is less than desired GPU memory \
utilization (0.92, 72.8 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
HEADS = """pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig
  Value error, Total number of attention heads (28) must be divisible by tensor parallel size (3). [type=value_error]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""

STUCK: dict[str, tuple[Raw, str, str]] = {
    "engine": (
        make_serving_pod(ready=False, containerStatuses=[ended("vllm", 1, LOG)]),
        "EngineFailing",
        "8 GiB KV cache is needed",
    ),
    "engine's flags": (
        make_serving_pod(ready=False, containerStatuses=[ended("vllm", 1, PYDANTIC)]),
        "EngineFailing",
        "ValidationError: 1 validation error for ModelConfig Value error, User-specified max_model_len (1000000) is "
        "greater than the derived max_model_len; see `kubectl logs",
    ),
    "a card that others hold": (
        make_serving_pod(ready=False, containerStatuses=[ended("vllm", 1, SHARED_CARD)]),
        "EngineFailing",
        "lower spec.vllm.gpuMemoryUtilization",
    ),
    "gpus that do not divide the heads": (
        make_serving_pod(ready=False, containerStatuses=[ended("vllm", 1, HEADS)]),
        "EngineFailing",
        "Total number of attention heads (28) must be divisible by tensor parallel size (3)",
    ),
    "plan": (
        make_serving_pod(
            ready=False,
            initContainerStatuses=[
                ended("plan", 64, '{"ok":false,"reason":"BaseModelInvalid","message":"model base/x does not exist"}')
            ],
        ),
        "PlanFailed",
        "spec.model.path: model base/x does not exist",
    ),
    "image": (
        make_serving_pod(
            ready=False,
            phase="Pending",
            containerStatuses=[
                {"name": "agent", "state": {"waiting": {"reason": "PodInitializing"}}},
                {"name": "vllm", "image": "vllm:1", "state": {"waiting": {"reason": "ImagePullBackOff"}}},
            ],
        ),
        "ImagePullFailed",
        "image vllm:1 cannot be pulled",
    ),
    "secret": (
        make_serving_pod(
            ready=False,
            phase="Pending",
            containerStatuses=[
                {
                    "name": "agent",
                    "state": {
                        "waiting": {
                            "reason": "CreateContainerConfigError",
                            "message": 'secret "llm-tuning-key" not found',
                        }
                    },
                }
            ],
        ),
        "SecretNotFound",
        "spec.apiKeySecret",
    ),
}


@pytest.mark.parametrize("case", STUCK)
def test_a_stuck_pod_says_what_to_do(case: str) -> None:
    pod, reason, words = STUCK[case]
    desired = desire(observe(pods=[pod], adapters={}))
    assert condition(desired, "Stalled") == ("True", reason)
    assert condition(desired) == ("False", reason)
    assert words in message(desired)
    assert reason in {event.reason for event in desired.events}


@pytest.mark.parametrize("sidecar", ["aaa-proxy", "istio-proxy", None])
@pytest.mark.parametrize(
    ("name", "reason", "words"),
    [
        ("plan", "PlanFailed", "the plan for vLLM used more memory than its limit of 1Gi"),
        ("agent", "AgentFailing", "the adapter agent used more memory than its limit of 1Gi"),
        ("vllm", "OutOfMemory", "vLLM used more memory than spec.resources.memory"),
    ],
)
def test_a_container_killed_for_memory_says_so_and_blames_no_line_of_its_log(
    name: str, reason: str, words: str, sidecar: str | None
) -> None:
    """The kubelet sorts statuses by name, so that an injected container may come first."""
    kind = "initContainerStatuses" if name == "plan" else "containerStatuses"
    others = [] if sidecar is None else [{"name": sidecar, "ready": True, "state": {"running": {}}}]
    statuses = sorted([ended(name, 137, "ERROR adapter ft_innocent", "OOMKilled"), *others], key=lambda s: s["name"])
    desired = desire(observe(pods=[make_serving_pod(ready=False, **{kind: statuses})], adapters={}))
    assert condition(desired, "Stalled") == ("True", reason)
    assert words in message(desired)
    assert "OOMKilled" in message(desired)
    assert "ft_innocent" not in message(desired)


@pytest.mark.parametrize(("name", "reason"), [("agent", "AgentFailing"), ("vllm", "EngineFailing")])
def test_a_container_killed_for_another_cause_is_not_told_as_memory(name: str, reason: str) -> None:
    status = ended(name, 137, "INFO adapter ft_innocent is loaded")
    desired = desire(observe(pods=[make_serving_pod(ready=False, containerStatuses=[status])], adapters={}))
    assert condition(desired, "Stalled") == ("True", reason)
    assert "was killed (exit code 137, SIGKILL)" in message(desired)
    assert "ft_innocent" not in message(desired)


def test_a_key_that_the_secret_lacks_is_named() -> None:
    waiting = {
        "reason": "CreateContainerConfigError",
        "message": "couldn't find key apiKey in Secret team/llm-tuning-k",
    }
    status = {"name": "agent", "state": {"waiting": waiting}}
    raw = make_service(apiKeySecret={"name": "llm-tuning-k"})
    pod = make_serving_pod(ready=False, phase="Pending", containerStatuses=[status])
    desired = desire(observe(raw, pods=[pod], adapters={}))
    assert condition(desired, "Stalled") == ("True", "SecretNotFound")
    assert "spec.apiKeySecret: Secret llm-tuning-k has no key apiKey" in message(desired)


def test_an_empty_api_key_is_said_where_it_is_looked_for() -> None:
    raw = make_service(apiKeySecret={"name": "llm-tuning-k", "key": "token"})
    well = observe(raw)
    assert condition(desire(well)) == ("True", "Ready")
    locked = [replace(pod, report=pod.report.model_copy(update={"locked": True})) for pod in well.pods if pod.report]
    desired = desire(replace(well, pods=tuple(locked)))
    assert condition(desired) == ("False", "ApiKeyEmpty")
    assert condition(desired, "Stalled") == ("True", "ApiKeyEmpty")
    assert "the key token of Secret llm-tuning-k was empty" in message(desired)
    assert "kubectl rollout restart deployment faq" in message(desired)


def test_a_container_that_is_well_again_is_no_trouble() -> None:
    vllm = {
        "name": "vllm",
        "ready": True,
        "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 137, "message": "Error: gone"}},
    }
    desired = desire(observe(pods=[make_serving_pod(ready=False, containerStatuses=[vllm])], adapters={}))
    assert condition(desired, "Stalled")[0] == "False"


def test_a_forbidden_pod_is_told_by_the_deployment() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": 'pods "faq-x" is forbidden: exceeded quota: gpus'}
    desired = desire(observe(pods=[], adapters={}, deployment={"conditions": [failure]}))
    assert condition(desired, "Stalled") == ("True", "QuotaExceeded")


def test_a_spec_of_another_version_is_refused_and_left_as_it_is() -> None:
    raw = make_service()
    raw["spec"]["unknown"] = 1
    from tuning_operator.inference_service.observed import build_observed_service

    desired = desire(build_observed_service(raw, spec=None, parts={}))
    assert desired.create == []
    assert condition(desired, "Stalled") == ("True", "SpecInvalid")


SLICES = SETTINGS.model_copy(update={"gpu_resource": "nvidia.com/gpu.shared"})
TWO_GPUS = make_service(resources={"gpus": 2})


def test_a_replica_of_several_shares_of_a_card_is_not_made() -> None:
    refused = desire_service(observe(TWO_GPUS, pods=[], adapters={}, applied=False), SLICES, after(60))
    assert DEPLOYMENTS not in [kind for kind, _ in refused.create]
    assert condition(refused) == ("False", "GPUsNotCombinable")
    assert condition(refused, "Stalled") == ("True", "GPUsNotCombinable")
    assert condition(refused, "Reconciling")[0] == "False"
    assert "got 2" in message(refused, "Stalled")
    lifted = desire(observe({**TWO_GPUS, "status": refused.status}, pods=[], adapters={}, applied=False))
    assert DEPLOYMENTS in [kind for kind, _ in lifted.create]
    assert condition(lifted, "Stalled")[0] == "False"


def test_replicas_that_serve_go_on_serving_when_a_change_is_refused() -> None:
    there = observe(make_service(), pods=[make_serving_pod()])
    asked = {**there.raw, "spec": {**there.raw["spec"], "resources": {"gpus": 2}}}
    spec = InferenceServiceSpec.parse(asked["spec"])
    desired = desire_service(dataclasses.replace(there, raw=asked, spec=spec), SLICES, after(60))
    assert DEPLOYMENTS not in [kind for kind, _ in [*desired.apply, *desired.create]]
    assert desired.delete == []
    assert condition(desired) == ("False", "GPUsNotCombinable")
    assert condition(desired, "AdaptersEffective")[0] == "True"
