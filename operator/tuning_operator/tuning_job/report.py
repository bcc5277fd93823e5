"""The report: the result of a training whose pod is gone, read from the claim by the operator's own image."""

from __future__ import annotations

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import TrainResult
from llm_tuning.pod.roles import REPORT, ROLES
from tuning_operator.core.conditions import UNKNOWN
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import shown_resources
from tuning_operator.pods.template import small_resources
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import result_of
from tuning_operator.tuning_job.stage import JobStage, ResourceRequests, Words

CPU, MEMORY = "100m", "256Mi"
"""It reads one manifest."""


class ReportStage(JobStage):
    """Over at once where the trainer's pod has left its result. The training has ended well by then: no deadline."""

    role = ROLES[REPORT]
    conditions = (ConditionType.TRAINED,)
    work = "reading the result"
    refused = Reason.INVALID_INPUT
    failing = Reason.RESULT_LOST

    def parts(self, observed: Observed, spec: TuningJobSpec, settings: Settings) -> PodParts:
        return PodParts(
            image=settings.operator_image,
            resources=small_resources(CPU, MEMORY),
            reads_dataset=False,
            has_deadline=False,
        )

    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        return ResourceRequests(pod="reading the result", resources=shown_resources(CPU, MEMORY))

    def memory_remedy(self, spec: TuningJobSpec) -> str:
        return f"{self.work} ran out of memory ({MEMORY}); the adapter is there"

    def words(self, child: Child | None) -> Words:
        message = "the trainer's pod is gone; its result is read from the claim"
        return Words(Phase.TRAINING, Reason.READING_RESULT, message)

    def run(self, chain: Chain) -> bool:
        return chain.result is not None or super().run(chain)

    def end(self, chain: Chain, child: Child) -> bool:
        if child.done_pod is None:  # gone before it was read
            if not child.is_deleting:
                chain.delete(child)
            self.go_on(chain, child)
            return False
        chain.result = result_of(child, TrainResult)
        if chain.result is None:
            self.fail(chain, Trouble(Reason.RESULT_LOST, ""))
        return chain.result is not None

    def fail(self, chain: Chain, trouble: Trouble) -> None:
        """Set ResultLost, whatever the reason: the adapter is there, only its result cannot be read."""
        name = chain.draft.fields["model_id"]
        message = f"the training has ended well, but its result cannot be read from models/{name}; look there"
        chain.draft.fail(Trouble(Reason.RESULT_LOST, message))
        chain.draft.conditions.set(ConditionType.TRAINED, UNKNOWN, Reason.RESULT_LOST, message)
