"""The InferenceService that a TuningJob makes when it has trained."""

from __future__ import annotations

from typing import Any

from llm_tuning.api.conditions import ConditionType, Reason
from llm_tuning.api.inference_service import KIND, ServeSpec
from llm_tuning.api.kube import API_VERSION
from llm_tuning.api.tuning_job import TuningJobSpec
from tuning_operator.core.cache import INFERENCE_SERVICES
from tuning_operator.core.conditions import FALSE, TRUE
from tuning_operator.core.constants import LABEL_JOB, MADE_FOR_ANNOTATION
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.stage import Stage


class ServeStage(Stage):
    """Make it; over once that is decided, well or not: the adapter is there anyway."""

    conditions = (ConditionType.SERVED,)

    def applies(self, observed: Observed) -> bool:
        return observed.spec is not None and observed.spec.serve is not None

    def run(self, chain: Chain) -> bool:
        serve, seen, result = chain.spec.serve, chain.observed, chain.result
        if serve is None or result is None:
            return True
        service, name = seen.service, f"InferenceService {serve.name}"
        if (refused := seen.refusals.get(INFERENCE_SERVICES)) is not None:
            message = f"{name} was refused: {refused}; the adapter is published, apply one by hand"
            decided = FALSE, Reason.SERVICE_REFUSED, message
        elif service is None:
            model_id = result.model_id or chain.draft.fields["model_id"]
            wanted = build_inference_service(seen, chain.spec, serve, model_id)
            chain.desired.create.append((INFERENCE_SERVICES, wanted))
            return False
        elif (service["metadata"].get("annotations") or {}).get(MADE_FOR_ANNOTATION) == seen.uid:
            decided = TRUE, Reason.SERVICE_CREATED, f"{name} was created; its condition Ready says when it answers"
        else:
            message = f"{name} was there before and is left as it is; point one of its routes at this TuningJob"
            decided = FALSE, Reason.SERVICE_EXISTS, message
        chain.draft.conditions.set(ConditionType.SERVED, *decided)
        return True


def build_inference_service(observed: Observed, spec: TuningJobSpec, serve: ServeSpec, model_id: str) -> dict[str, Any]:
    """Build an InferenceService with one route by modelId, and no owner: it outlives the TuningJob."""
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
            "model": _base(observed, spec),
            "volume": {"claimName": spec.volume.claim_name},
            "routes": [{"name": serve.name, "targets": [{"modelId": model_id}]}],
            **asked,
        },
    }


def _base(observed: Observed, spec: TuningJobSpec) -> dict[str, Any]:
    """Return the base by its path; one that was fetched lies under its commit, and is called as its URI has it."""
    fetched = observed.spec is not None and observed.spec.model.uri is not None
    name = {"name": observed.spec.base_name} if observed.spec is not None and fetched else {}
    return {"path": spec.model.path, **name}
