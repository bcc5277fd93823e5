"""Build the Job that reads the result of a finished training once more, where its pod has gone before it was read."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.contract import REPORT
from tuning_operator.core.settings import Settings
from tuning_operator.pods.template import PodParts, build_job, small_resources
from tuning_operator.tuning_job.observed import Observed

REPORT_CPU, REPORT_MEMORY = "100m", "256Mi"
"""It reads one manifest."""


def build_report_job(
    observed: Observed, spec: TuningJobSpec, settings: Settings, start_model_id: str | None
) -> dict[str, Any]:
    """Reads one manifest from the claim."""
    resources = small_resources(REPORT_CPU, REPORT_MEMORY)
    parts = PodParts(image=settings.operator_image, resources=resources)
    return build_job(observed, spec, settings, role=REPORT, parts=parts, start_model_id=start_model_id)
