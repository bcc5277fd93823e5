"""The training: a plain `batch/v1` Job, so that Kueue, quotas and dashboards know it."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CREDENTIALS_VARIABLE, REQUIRE_GPU_VARIABLE, TrainResult
from llm_tuning.pod.roles import ROLES, TRAIN
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import shown_resources
from tuning_operator.pods.template import threads
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.job import child_name
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import result_of
from tuning_operator.tuning_job.reporting import add_reporting
from tuning_operator.tuning_job.stage import JobStage, ResourceRequests, Words

CREDENTIALS_FOLDER = "/var/run/llm-tuning-credentials"
SHARED_MEMORY = "2Gi"
"""NCCL's rings between the processes of several GPUs; the default of 64 MiB is too small for it."""


class TrainStage(JobStage):
    """Train, publish and register. Its pod's result is taken here, and by the next stage where the pod is gone."""

    role = ROLES[TRAIN]
    conditions = (ConditionType.TRAINED, ConditionType.REGISTERED, ConditionType.EVALUATED)
    work = "the training"
    refused = Reason.INVALID_INPUT
    failing = Reason.TRAINER_FAILING
    begins_from_adapter = True

    def parts(self, observed: Observed, spec: TuningJobSpec, settings: Settings) -> PodParts:
        resources = spec.resources
        requests: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
        limits: dict[str, Any] = {"memory": resources.memory}
        if resources.gpus:
            requests[settings.gpu_resource] = limits[settings.gpu_resource] = str(resources.gpus)
        parts = PodParts(
            image=settings.trainer_image,
            resources={"requests": requests, "limits": limits},
            runtime_class=resources.runtime_class_name if resources.gpus else None,
        )
        threads_each = max(1, threads(resources.cpu) // max(1, resources.gpus))  # one process for each GPU
        parts.environment.append({"name": "OMP_NUM_THREADS", "value": str(threads_each)})
        if resources.gpus and not settings.allow_cpu_fallback:
            parts.environment.append({"name": REQUIRE_GPU_VARIABLE, "value": "1"})
        if resources.gpus > 1:
            memory = {"medium": "Memory", "sizeLimit": SHARED_MEMORY}
            parts.volumes.append({"name": "shm", "emptyDir": memory})
            parts.mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        if spec.tracking.credentials_secret is not None:
            _add_credentials(parts, spec.tracking.credentials_secret.name)
        add_reporting(parts, observed, settings)
        return parts

    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        asked = spec.resources
        shown = shown_resources(asked.cpu, asked.memory, asked.gpus, settings.gpu_resource)
        return ResourceRequests(pod="a trainer", resources=shown, lower="lower spec.resources")

    def memory_remedy(self, spec: TuningJobSpec) -> str:
        return (
            f"the trainer used more memory than spec.resources.memory ({spec.resources.memory}) and was ended; apply a "
            "TuningJob with more memory, or with less batchSize, maxLength or maxTokensPerPass"
        )

    def words(self, child: Child | None) -> Words:
        if child is not None and any(pod.phase != "Pending" for pod in child.pods):
            return Words(Phase.TRAINING, Reason.TRAINING, "the trainer runs")
        return Words(Phase.TRAINING, Reason.STARTING, "the trainer is being started")

    def run(self, chain: Chain) -> bool:
        chain.draft.fields["job_name"] = child_name(chain.observed.name, self.role.name)
        return super().run(chain)

    def end(self, chain: Chain, child: Child) -> bool:
        chain.result = result_of(child, TrainResult)
        return True


def _add_credentials(parts: PodParts, secret: str) -> None:
    """Mount the Secret as files: by `envFrom`, its keys would decide what the interpreter runs before any of ours."""
    parts.volumes.append({"name": "credentials", "secret": {"secretName": secret}})
    parts.mounts.append({"name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True})
    parts.environment.append({"name": CREDENTIALS_VARIABLE, "value": CREDENTIALS_FOLDER})
