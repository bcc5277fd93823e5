"""What is there: one InferenceService with what it is made of, its pods and their agents' reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from llm_tuning.agent.contract import Report
from llm_tuning.api.inference_service import InferenceServiceSpec, InferenceServiceStatus, read_status
from llm_tuning.engines import vllm
from llm_tuning.errors import Problem
from llm_tuning.pod.roles import FETCH, ROLES
from tuning_operator.core.constants import LABEL_ROLE
from tuning_operator.core.resource import CustomResource, parse_spec
from tuning_operator.pods.observed import AdapterJob, Child, Pod, Raw, adapter_job, is_owned
from tuning_operator.pods.trouble import Reported

AGENT, ENGINE, PLAN = "agent", vllm.NAME, "plan"
"""Names of the containers of a pod."""


@dataclass(frozen=True)
class ServingPod(Pod):
    """A pod with vLLM and its agent."""

    own: tuple[str, ...] = (ENGINE, AGENT, PLAN)
    report: Report | None = None
    """The newest report of its agent, of the last seconds."""

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    @property
    def is_ready(self) -> bool:
        return self.condition("Ready").get("status") == "True" and not self.is_deleting


@dataclass(frozen=True)
class ObservedService(CustomResource):
    """One InferenceService and all that belongs to it."""

    spec: InferenceServiceSpec | None
    parts: Mapping[str, Raw] = field(default_factory=dict)
    """What it is made of and owns, by kind."""
    taken: tuple[str, ...] = ()
    """Kinds of which an object of our name has another owner."""
    pods: tuple[ServingPod, ...] = ()
    """Oldest first, without those that are going."""
    fetches: tuple[Child, ...] = ()
    """Its Jobs that fetch a base, of any URI that its spec has had."""
    fetch_policy: Raw | None = None
    taken_names: tuple[str, ...] = ()
    """Names of its fetching Job or NetworkPolicy that another owner's has."""
    jobs: Mapping[str, AdapterJob] = field(default_factory=dict)
    """The TuningJobs that the routes name."""
    warnings: tuple[Raw, ...] = ()
    reported: Reported | None = None
    """What the pod of a fetch, of any URI, has reported last."""
    reports_due: bool = False
    """The operator has just started: agents that have not reported yet may well do so in some seconds."""

    @cached_property
    def status(self) -> InferenceServiceStatus:
        return read_status(self.raw.get("status"))


def build_observed_service(
    raw: Raw,
    *,
    spec: InferenceServiceSpec | None,
    parts: Mapping[str, Raw],
    pods: Iterable[Raw] = (),
    reports: Mapping[str, Report] | None = None,
    jobs: Mapping[str, Raw | None] | None = None,
    warnings: Iterable[Raw] = (),
    reports_due: bool = False,
    reported: Reported | None = None,
    fetches: Iterable[Raw] = (),
    fetch_policy: Raw | None = None,
) -> ObservedService:
    """Put an InferenceService together; `parts`, `fetches` and `fetch_policy` are of our names, whoever owns them."""
    problems: tuple[Problem, ...] = ()
    if spec is None:
        spec, problems = parse_spec(InferenceServiceSpec, raw)
    uid = raw["metadata"]["uid"]
    own = {kind: part for kind, part in parts.items() if is_owned(part, uid)}
    serving, fetching = [], []
    for pod in pods:
        if pod["metadata"].get("labels", {}).get(LABEL_ROLE) == FETCH:
            fetching.append(Pod(pod, (ROLES[FETCH].container,)))
        else:
            serving.append(ServingPod(pod, report=(reports or {}).get(pod["metadata"]["uid"])))
    fetching.sort(key=lambda pod: (pod.created, pod.name))
    warnings, of_fetch = tuple(warnings), list(fetches)
    beside = [*of_fetch, *([] if fetch_policy is None else [fetch_policy])]
    return ObservedService(
        raw=raw,
        spec=spec,
        problems=problems,
        parts=own,
        taken=tuple(kind for kind in parts if kind not in own),
        pods=tuple(sorted((p for p in serving if not p.is_deleting), key=lambda pod: (pod.created, pod.name))),
        fetches=tuple(
            Child(job, tuple(pod for pod in fetching if is_owned(pod.raw, job["metadata"]["uid"])), warnings)
            for job in of_fetch
            if is_owned(job, uid)
        ),
        fetch_policy=fetch_policy if fetch_policy is not None and is_owned(fetch_policy, uid) else None,
        taken_names=tuple(other["metadata"]["name"] for other in beside if not is_owned(other, uid)),
        jobs={name: adapter_job(name, job, ()) for name, job in (jobs or {}).items()},
        warnings=warnings,
        reported=reported,
        reports_due=reports_due,
    )
