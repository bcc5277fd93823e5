"""The InferenceService that a TuningJob makes when it succeeds."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.inference_service import KIND, ServeSpec
from llm_tuning.api.kube import API_VERSION
from llm_tuning.api.tuning_job import TuningJobSpec
from tuning_operator.core.constants import LABEL_JOB, MADE_FOR_ANNOTATION
from tuning_operator.tuning_job.observed import Observed


def build_inference_service(observed: Observed, spec: TuningJobSpec, serve: ServeSpec, model_id: str) -> dict[str, Any]:
    """One route to the adapter, by modelId: the TuningJob may go at any time. No owner: it outlives that."""
    asked = serve.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"name"})
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": serve.name,
            "namespace": observed.namespace,
            "annotations": {MADE_FOR_ANNOTATION: observed.uid, LABEL_JOB: observed.name},
        },
        "spec": {
            "model": {"path": spec.model.path},
            "volume": {"claimName": spec.volume.claim_name},
            "routes": [{"name": serve.name, "targets": [{"modelId": model_id}]}],
            **asked,
        },
    }
