"""Build the data check of a TuningJob: the operator's own image, no GPU, on the nodes where training will be."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import CHECK
from tuning_operator.core.settings import Settings
from tuning_operator.pods.template import PodParts, build_job, small_resources
from tuning_operator.tuning_job.observed import Observed


def build_check_job(
    observed: Observed, spec: TuningJobSpec, settings: Settings, start_model_id: str | None
) -> dict[str, Any]:
    """`start_model_id` is None also where it is not known yet: the data is checked without waiting for it."""
    resources = small_resources(settings.check_cpu, settings.check_memory)
    parts = PodParts(image=settings.operator_image, resources=resources)
    return build_job(observed, spec, settings, role=CHECK, parts=parts, start_model_id=start_model_id)
