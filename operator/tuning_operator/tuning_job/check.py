"""The data check: the operator's own image, no GPU, on the nodes where training will be."""

from __future__ import annotations

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CheckResult
from llm_tuning.pod.roles import CHECK, ROLES
from tuning_operator.core.conditions import TRUE
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import shown_resources
from tuning_operator.pods.template import small_resources
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import result_of
from tuning_operator.tuning_job.stage import JobStage, ResourceRequests, Words


class CheckStage(JobStage):
    """Nothing asks for a GPU before the data is known to be good. It does not wait for the start adapter."""

    role = ROLES[CHECK]
    conditions = (ConditionType.DATASET_VALID,)
    work = "the data check"
    refused = Reason.DATASET_INVALID
    failing = Reason.CHECK_FAILING

    def parts(self, observed: Observed, spec: TuningJobSpec, settings: Settings) -> PodParts:
        resources = small_resources(settings.check_cpu, settings.check_memory)
        return PodParts(image=settings.operator_image, resources=resources)

    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        return ResourceRequests(
            pod="the data check",
            resources=shown_resources(settings.check_cpu, settings.check_memory),
            lower="have the operator's Helm values dataCheck.cpu and dataCheck.memory lowered",
        )

    def memory_remedy(self, spec: TuningJobSpec) -> str:
        return f"{self.work} ran out of memory; raise the operator's Helm value dataCheck.memory"

    def words(self, child: Child | None) -> Words:
        return Words(Phase.CHECKING, Reason.CHECKING, "the data check is running; no GPU is requested until it passes")

    def end(self, chain: Chain, child: Child) -> bool:
        result = result_of(child, CheckResult)
        message = result.message if result is not None else "the data check has passed; its report is gone"
        chain.draft.conditions.set(self.condition, TRUE, Reason.DATASET_VALID, message)
        return True
