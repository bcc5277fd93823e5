"""The fetch: what the spec names by URI is put on the claim, before anything looks at it."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.sources import SourceStatus
from llm_tuning.api.tuning_job import KIND, TuningJobSpec, with_fetched
from llm_tuning.pod.contract import FetchResult
from llm_tuning.pod.roles import FETCH, ROLES
from tuning_operator.core.cache import NETWORK_POLICIES
from tuning_operator.core.conditions import TRUE
from tuning_operator.core.constants import LABEL_ROLE, LABEL_UID, LONGEST_LOOK_SECONDS
from tuning_operator.core.drift import has_drifted
from tuning_operator.core.settings import Settings
from tuning_operator.pods.fetch import CPU, MEMORY, Asked, fetch_parts
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.network import build_policy, offline, online
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import PodRequests, find_refusal, shown_resources
from tuning_operator.pods.template import owner_reference
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.job import child_name, labels_of, model_id
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import result_of
from tuning_operator.tuning_job.reporting import add_reporting
from tuning_operator.tuning_job.stage import JobStage, ResourceRequests, Words

OFFLINE = "offline"
"""End of the name of the NetworkPolicy of all pods but the fetching one."""


class FetchStage(JobStage):
    """Of a TuningJob with a URI. What it was resolved to stands in the status from the first sight on.

    Its pod is the only one with a way out: its NetworkPolicy, and that of the pods after it, are there before it is.
    """

    role = ROLES[FETCH]
    conditions = (ConditionType.FETCHED,)
    work = "the fetch"
    refused = Reason.INVALID_INPUT
    failing = Reason.FETCH_FAILING

    def applies(self, observed: Observed) -> bool:
        spec = observed.spec
        return spec is not None and (spec.model.uri is not None or spec.dataset.uri is not None)

    def parts(self, observed: Observed, spec: TuningJobSpec, settings: Settings) -> PodParts:
        parts = fetch_parts(_asked(observed, spec), model_id(observed, spec), settings)
        add_reporting(parts, observed, settings)
        return parts

    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        return ResourceRequests(pod="the fetch", resources=shown_resources(CPU, MEMORY))

    def pod_requests(self, spec: TuningJobSpec, settings: Settings) -> PodRequests:
        secrets = {"model": spec.model.credentials_secret, "dataset": spec.dataset.credentials_secret}
        field, secret = next(((name, given) for name, given in secrets.items() if given is not None), ("model", None))
        asked = self.requests(spec, settings)
        return PodRequests(
            claim=spec.volume.claim_name,
            contents="room for what is fetched",
            pod=asked.pod,
            resources=asked.resources,
            lower=asked.lower,
            secret_field=f"spec.{field}.credentialsSecret",
            secret_key="HF_TOKEN",
            secret=secret.name if secret is not None and sum(map(bool, secrets.values())) == 1 else None,
        )

    def memory_remedy(self, spec: TuningJobSpec) -> str:
        return (
            f"{self.work} used more memory than its limit ({MEMORY}) and was ended; report it as a fault with its log"
        )

    def words(self, child: Child | None) -> Words:
        return Words(Phase.FETCHING, Reason.FETCHING, "the sources are being fetched; no GPU is requested until then")

    def run(self, chain: Chain) -> bool:
        self._note(chain)
        if not chain.observed.holds(self.condition) and not self._fence(chain):
            return False
        if not super().run(chain):
            return False
        found = {name: chain.draft.fields[name].path for name in ("model", "dataset") if name in chain.draft.fields}
        chain.spec = with_fetched(chain.spec, model_path=found.get("model"), dataset_path=found.get("dataset"))
        return True

    def go_on(self, chain: Chain, child: Child | None) -> None:
        super().go_on(chain, child)
        reported = chain.observed.reported
        runs = child is not None and any(pod.running_since is not None for pod in child.pods)
        if reported is not None and reported.waiting is not None and runs and not chain.spec.suspend:
            waiting = reported.waiting
            words = self.words(child)
            chain.draft.say(words.phase, waiting.reason, waiting.message, stage=self.condition, steady=True)
            chain.draft.stall(waiting.reason, waiting.message, steady=True)

    def end(self, chain: Chain, child: Child) -> bool:
        result = result_of(child, FetchResult)
        asked = _asked(chain.observed, chain.spec)
        if result is None:  # gone before it was read: the next one finds all there, and ends in a second
            if not child.is_deleting:
                chain.delete(child)
            self.go_on(chain, child)
            return False
        if any(source.field not in result.sources for source in asked):
            self.fail(chain, Trouble(Reason.FETCH_FAILING, "the fetch has ended and does not say where its files are"))
            return False
        for source in asked:
            found = result.sources[source.field]
            chain.draft.fields[source.field] = SourceStatus(uri=source.uri, revision=found.revision, path=found.path)
        chain.draft.conditions.set(self.condition, TRUE, Reason.FETCHED, result.message or "the sources are there")
        return True

    def _note(self, chain: Chain) -> None:
        """Keep in the status what a URI was resolved to, and never another thing after that."""
        reported = chain.observed.reported
        for source in _asked(chain.observed, chain.spec):
            known = getattr(chain.observed.status, source.field)
            if known is None or known.revision is None:
                revision = reported.revisions.get(source.field) if reported is not None else None
                known = SourceStatus(uri=source.uri, revision=revision)
            chain.draft.fields[source.field] = known

    def _fence(self, chain: Chain) -> bool:
        """Want the NetworkPolicies; returns whether pods may come: not where another owner has one of their names."""
        taken = [name for name in policy_names(chain.observed) if name in chain.observed.taken_policies]
        if taken:
            chain.draft.say(Phase.FETCHING, Reason.FETCHING, "waiting for its NetworkPolicies", stage=self.condition)
            if not chain.observed.taken_policies[taken[0]]:
                chain.draft.stall(
                    Reason.NAME_TAKEN,
                    f"NetworkPolicy {taken[0]} has another owner; delete it, or apply this TuningJob under another "
                    "name",
                )
            chain.desired.requeue(LONGEST_LOOK_SECONDS)
            return False
        for wanted in build_policies(chain.observed, chain.spec, chain.settings):
            there = chain.observed.policies.get(wanted["metadata"]["name"])
            if there is None:
                chain.desired.create.append((NETWORK_POLICIES, wanted))
            elif has_drifted(wanted, there):
                chain.desired.apply.append((NETWORK_POLICIES, wanted))
        refused = chain.observed.refusals.get(NETWORK_POLICIES)
        if refused is not None:
            stuck = find_refusal(refused, "NetworkPolicy")
            chain.draft.say(Phase.FETCHING, Reason.FETCHING, "waiting for its NetworkPolicies", stage=self.condition)
            chain.draft.stall(stuck.reason, stuck.message, steady=True)
        return refused is None


def policy_names(observed: Observed) -> tuple[str, str]:
    """Name the NetworkPolicies of a TuningJob with a URI."""
    return child_name(observed.name, FETCH), child_name(observed.name, OFFLINE)


def build_policies(observed: Observed, spec: TuningJobSpec, settings: Settings) -> list[dict[str, Any]]:
    """Build the NetworkPolicy of the fetching pod, and that of all other pods of the TuningJob."""
    own = {"matchLabels": {LABEL_UID: observed.uid}}
    fetching = {"matchLabels": {LABEL_UID: observed.uid, LABEL_ROLE: FETCH}}
    others = own | {"matchExpressions": [{"key": LABEL_ROLE, "operator": "NotIn", "values": [FETCH]}]}
    specs = (online(fetching), offline(others, settings, spec.tracking.uri))
    owner = owner_reference(observed, KIND)
    return [
        build_policy(name, observed.namespace, labels_of(observed), owner, each)
        for name, each in zip(policy_names(observed), specs, strict=True)
    ]


def _asked(observed: Observed, spec: TuningJobSpec) -> list[Asked]:
    status = observed.status
    found = (
        Asked.of("model", spec.model, status.model.revision if status.model is not None else None),
        Asked.of("dataset", spec.dataset, status.dataset.revision if status.dataset is not None else None),
    )
    return [source for source in found if source is not None]
