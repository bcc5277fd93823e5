"""A stage of the chain: what a reconcile walks, one after the other, until one is not over yet.

A stage is one object in its own file, and stands in the list of `stages`. Nothing else knows how many there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from llm_tuning.api.conditions import Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.roles import PodRole
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import PodRequests
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import failure_of, is_done, is_left_open, refusal

if TYPE_CHECKING:
    from tuning_operator.tuning_job.chain import Chain


class Stage(ABC):
    """One step of the chain. It keeps nothing: the same object serves every TuningJob."""

    conditions: ClassVar[tuple[StrEnum, ...]] = ()
    """Those that it decides; NotReached where the chain ends before."""

    def applies(self, observed: Observed) -> bool:
        """Return whether the TuningJob has this stage at all."""
        return True

    @abstractmethod
    def run(self, chain: Chain) -> bool:
        """Take the stage as far as it goes now; True where the next one may begin, else the draft says why not."""


@dataclass(frozen=True)
class Words:
    """The phase, reason and message of a stage that is not decided."""

    phase: Phase
    reason: str
    message: str


@dataclass(frozen=True)
class ResourceRequests:
    """What the pod of a stage requests of the scheduler."""

    pod: str
    """What people call the pod."""
    resources: str
    """As `shown_resources` writes them."""
    lower: str = ""
    """How that is lowered, by the field or Helm value that sets it; empty where nothing does."""


class JobStage(Stage):
    """A stage whose work a Job does: it is made once, followed to its end, and its result recorded."""

    role: ClassVar[PodRole]
    work: ClassVar[str]
    """What it does, in a sentence: `the data check`."""
    refused: ClassVar[Reason]
    """Of bad input, where the pod left no reason of its own."""
    failing: ClassVar[Reason]
    """Of a failed attempt, where nothing better is known."""
    begins_from_adapter: ClassVar[bool] = False
    """Whether its result depends on the start adapter, which is then in the status before the Job is made."""

    @abstractmethod
    def parts(self, observed: Observed, spec: TuningJobSpec, settings: Settings) -> PodParts:
        """Build what this role adds to the common pod."""

    @abstractmethod
    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        """Return what the pod requests, and the field that sets it."""

    @abstractmethod
    def memory_remedy(self, spec: TuningJobSpec) -> str:
        """Return the remedy for a pod that used more memory than its limit, as a message."""

    @abstractmethod
    def words(self, child: Child | None) -> Words:
        """Return phase, reason and message of a stage that is not decided."""

    @abstractmethod
    def end(self, chain: Chain, child: Child) -> bool:
        """Record the result of work that has ended well; returns as `run` does."""

    def fail(self, chain: Chain, trouble: Trouble) -> None:
        """Record that the work has failed for good."""
        chain.draft.fail(trouble, stage=self.condition)

    @property
    def condition(self) -> StrEnum:
        """Name the condition that shows how far the work is."""
        return self.conditions[0]

    def run(self, chain: Chain) -> bool:
        child = chain.observed.children.get(self.role.name)
        if chain.observed.holds(self.condition):
            if child is not None and is_left_open(child):
                chain.delete(child)
            return True
        if child is not None and chain.is_undecided(child):
            return False
        if child is not None and is_done(child, chain.now):
            return self.end(chain, child)
        if child is not None and self.starts_again(chain, child):
            return False
        if child is not None and (trouble := self.trouble(chain, child)):
            self.fail(chain, trouble)
            return False
        self.go_on(chain, child)
        return False

    def starts_again(self, chain: Chain, child: Child) -> bool:
        """Have another Job after one that has failed, where its own retries are none; returns whether it does."""
        return False

    def seconds_to_pause(self, chain: Chain) -> float:
        """Return how long its next Job is to be put off yet; 0 or less: not at all."""
        return 0.0

    def pods_of(self, child: Child) -> list[Child]:
        """List the Job once for each of the pods that it should have at the same time, with that one alone."""
        return [child]

    def go_on(self, chain: Chain, child: Child | None) -> None:
        """Set phase and message, and create the stage's Job or follow it."""
        words = self.words(child)
        chain.draft.say(words.phase, words.reason, words.message, stage=self.condition)
        chain.work(self, child)

    def pod_requests(self, spec: TuningJobSpec, settings: Settings) -> PodRequests:
        """Return all requests of the pod that may leave it stuck."""
        requests = self.requests(spec, settings)
        source, secret = spec.dataset.config_map, spec.tracking.credentials_secret
        return PodRequests(
            claim=spec.volume.claim_name,
            contents="base/ and datasets/",
            pod=requests.pod,
            resources=requests.resources,
            lower=requests.lower,
            secret_field="spec.tracking.credentialsSecret",
            secret_key="MLFLOW_TRACKING_PASSWORD",
            secret=secret.name if secret is not None else None,
            config_map=(source.name, source.key) if source is not None else None,
        )

    def trouble(self, chain: Chain, child: Child) -> Trouble | None:
        """Return why the Job has failed for good, or None while it may still end well."""
        if child.has_failed:
            return failure_of(child, self, chain.spec)
        return refusal(child, self, chain.spec, chain.now)
