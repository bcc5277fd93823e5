"""The training: a plain `batch/v1` Job, so that Kueue, quotas and dashboards know it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import (
    ADDRESS_VARIABLE,
    ATTEMPT_VARIABLE,
    CREDENTIALS_VARIABLE,
    REQUIRE_GPU_VARIABLE,
    TrainResult,
)
from llm_tuning.pod.roles import ROLES, TRAIN
from tuning_operator.core.constants import LABEL_JOB_UID
from tuning_operator.core.settings import Settings
from tuning_operator.pods.job import PodParts
from tuning_operator.pods.observed import Child
from tuning_operator.pods.stuck import PodRequests, shown_resources
from tuning_operator.pods.template import threads
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.attempts import final_trouble, say_why_it_failed, seconds_to_pause, starts_again
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.job import child_name
from tuning_operator.tuning_job.nodes import fence, node_statuses
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
        if resources.gpus * resources.nodes > 1:  # NCCL has its buffers there, those of the network, too
            memory = {"medium": "Memory", "sizeLimit": SHARED_MEMORY}
            parts.volumes.append({"name": "shm", "emptyDir": memory})
            parts.mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        if resources.nodes > 1:
            _add_nodes(parts, observed, resources.nodes, settings)
        if spec.tracking.credentials_secret is not None:
            _add_credentials(parts, spec.tracking.credentials_secret.name)
        add_reporting(parts, observed, settings)
        return parts

    def requests(self, spec: TuningJobSpec, settings: Settings) -> ResourceRequests:
        asked = spec.resources
        shown = shown_resources(asked.cpu, asked.memory, asked.gpus, settings.gpu_resource)
        return ResourceRequests(pod="a trainer", resources=shown, lower="lower spec.resources")

    def pod_requests(self, spec: TuningJobSpec, settings: Settings) -> PodRequests:
        return replace(super().pod_requests(spec, settings), nodes=spec.resources.nodes)

    def memory_remedy(self, spec: TuningJobSpec) -> str:
        return (
            f"the trainer used more memory than spec.resources.memory ({spec.resources.memory}) and was ended; apply a "
            "TuningJob with more memory, or with less batchSize, maxLength or maxTokensPerPass"
        )

    def words(self, child: Child | None) -> Words:
        nodes = child.nodes if child is not None else 1
        run = {pod.index for pod in child.pods if pod.phase != "Pending"} if child is not None else set()
        if nodes > 1 and 0 < len(run) < nodes:
            return Words(Phase.TRAINING, Reason.STARTING, f"{len(run)} of {nodes} pods run; they train once all do")
        if run:
            return Words(Phase.TRAINING, Reason.TRAINING, "the trainer runs")
        return Words(Phase.TRAINING, Reason.STARTING, "the trainer is being started")

    def run(self, chain: Chain) -> bool:
        chain.draft.fields["job_name"] = child_name(chain.observed.name, self.role.name)
        child = chain.observed.children.get(self.role.name)
        if chain.spec.resources.nodes > 1 and not chain.observed.holds(self.condition):
            chain.draft.fields["nodes"] = node_statuses(child, chain)
            if not fence(chain, self) and child is None:
                return False
        return super().run(chain)

    def starts_again(self, chain: Chain, child: Child) -> bool:
        return child.has_failed and starts_again(chain, self, child)

    def seconds_to_pause(self, chain: Chain) -> float:
        return seconds_to_pause(chain.observed.status.attempts, chain.now)

    def pods_of(self, child: Child) -> list[Child]:
        return [child] if child.nodes == 1 else [child.of_index(index) for index in range(child.nodes)]

    def go_on(self, chain: Chain, child: Child | None) -> None:
        super().go_on(chain, child)
        self._say_slow_rank(chain, child)
        if not chain.draft.conditions.holds(ConditionType.STALLED):
            say_why_it_failed(chain, self, child)

    def _say_slow_rank(self, chain: Chain, child: Child | None) -> None:
        """Say which rank the others wait for, as the trainer has reported; it goes on all the same."""
        told = chain.observed.reported.waiting if chain.observed.reported is not None else None
        if told is None or told.reason != Reason.SLOW_RANK or child is None or child.is_deleting:
            return
        if not child.is_suspended and self.words(child).reason == Reason.TRAINING:
            chain.draft.say(Phase.TRAINING, Reason.SLOW_RANK, told.message, stage=self.condition)

    def trouble(self, chain: Chain, child: Child) -> Trouble | None:
        if child.nodes > 1 and child.has_failed:
            return final_trouble(chain, self, child)
        return next(filter(None, (super(TrainStage, self).trouble(chain, part) for part in self.pods_of(child))), None)

    def end(self, chain: Chain, child: Child) -> bool:
        chain.result = result_of(child, TrainResult)
        return True


def _add_nodes(parts: PodParts, observed: Observed, nodes: int, settings: Settings) -> None:
    """Have the pods find each other by the Service of the Job's name, over the network that the chart names."""
    parts.nodes, parts.subdomain = nodes, child_name(observed.name, TRAIN)
    address = {"fieldRef": {"fieldPath": "status.podIP"}}
    parts.environment.append({"name": ADDRESS_VARIABLE, "valueFrom": address})
    attempt = {"fieldRef": {"fieldPath": f"metadata.labels['{LABEL_JOB_UID}']"}}
    parts.environment.append({"name": ATTEMPT_VARIABLE, "valueFrom": attempt})
    if settings.nodes_interface:
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
            parts.environment.append({"name": name, "value": settings.nodes_interface})
    if settings.nodes_rdma_resource:
        for kind in ("requests", "limits"):
            parts.resources[kind][settings.nodes_rdma_resource] = "1"


def _add_credentials(parts: PodParts, secret: str) -> None:
    """Mount the Secret as files: by `envFrom`, its keys would decide what the interpreter runs before any of ours."""
    parts.volumes.append({"name": "credentials", "secret": {"secretName": secret}})
    parts.mounts.append({"name": "credentials", "mountPath": CREDENTIALS_FOLDER, "readOnly": True})
    parts.environment.append({"name": CREDENTIALS_VARIABLE, "value": CREDENTIALS_FOLDER})
