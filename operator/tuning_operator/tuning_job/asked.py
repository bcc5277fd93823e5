"""What the pods of a TuningJob ask for, by role: only the trainer gets spec.resources."""

from __future__ import annotations

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CHECK, TRAIN
from tuning_operator.core.settings import Settings
from tuning_operator.pods.stuck import Asked, shown_resources
from tuning_operator.tuning_job.report_job import REPORT_CPU, REPORT_MEMORY


def asked_by_job(spec: TuningJobSpec, role: str, settings: Settings) -> Asked:
    """What the pod of that role asks for, and where that is set."""
    source, secret = spec.dataset.config_map, spec.tracking.credentials_secret
    pod, resources, lower = _asked(spec, role, settings)
    return Asked(
        claim=spec.volume.claim_name,
        contents="base/ and datasets/",
        pod=pod,
        resources=resources,
        lower=lower,
        secret_field="spec.tracking.credentialsSecret",
        secret_key="MLFLOW_TRACKING_PASSWORD",
        secret=secret.name if secret is not None else None,
        config_map=(source.name, source.key) if source is not None else None,
    )


def _asked(spec: TuningJobSpec, role: str, settings: Settings) -> tuple[str, str, str]:
    if role == TRAIN:
        asked = spec.resources
        shown = shown_resources(asked.cpu, asked.memory, asked.gpus, settings.gpu_resource)
        return "a trainer", shown, "lower spec.resources"
    if role == CHECK:
        shown = shown_resources(settings.check_cpu, settings.check_memory)
        return "the data check", shown, "have the operator's Helm values dataCheck.cpu and dataCheck.memory lowered"
    return "reading the result", shown_resources(REPORT_CPU, REPORT_MEMORY), ""
