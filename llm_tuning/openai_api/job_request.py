"""A request for a job as the TuningJob that it makes. Pure.

What Kubernetes has no field for stands in one annotation (`Kept`), so that creating a job is one write.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llm_tuning.api.kube import API_VERSION
from llm_tuning.api.tuning_job import KIND
from llm_tuning.client.objects import TuningJobView
from llm_tuning.core.model import ApiModel
from llm_tuning.openai_api import names
from llm_tuning.openai_api.bases import Base, Settings
from llm_tuning.openai_api.errors import ApiError, invalid
from llm_tuning.openai_api.found import Described
from llm_tuning.openai_api.wire import CreateJob, DpoHyperparameters, Hyperparameters

Raw = dict[str, Any]
SFT, DPO = "sft", "dpo"
MODE_OF = {"supervised": SFT, "dpo": DPO}
AUTO = "auto"
_OLD_PLACE = "hyperparameters"


class Kept(BaseModel):
    """What is kept of a request besides the spec."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    model: str
    """As it was asked for: a base's name, or the fine-tuned model to go on from."""
    base: str
    """The base's name."""
    fine_tuned_model: str
    """What the result is called."""
    learning_rate_multiplier: float = 1.0
    suffix: str | None = None
    metadata: dict[str, str] | None = None

    @classmethod
    def of(cls, job: Described) -> Kept | None:
        """Read what a TuningJob has; None where this API has not made it, or somebody has spoiled the annotation."""
        try:
            return cls.model_validate_json((job.metadata.get("annotations") or {})[names.ANNOTATION_REQUEST])
        except (KeyError, ValidationError):
            return None


def is_deleted(job: Described) -> bool:
    """Return whether the model that a job has made was deleted."""
    return names.ANNOTATION_MODEL_DELETED in (job.metadata.get("annotations") or {})


@dataclass(frozen=True)
class Start:
    """What a job starts from."""

    base_name: str
    base: Base
    adapter: str | None = None
    """model_id of the fine-tuned model that it goes on from."""


def request_hash(asked: CreateJob, key: str) -> str:
    """Hash what a key asks for, as the value of a label: the same request again has the same."""
    text = json.dumps(asked.model_dump(mode="json", exclude_none=True), sort_keys=True)
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()[:32]


def find_start(asked: CreateJob, settings: Settings, jobs: list[TuningJobView]) -> Start:
    """Return what `model` names: a base, or a model that one of `jobs` has made; raises ApiError."""
    if asked.model in settings.bases or not asked.model.startswith("ft:"):
        return Start(asked.model, settings.base(asked.model))
    for job in jobs:
        kept = Kept.of(job)
        if kept is None or kept.fine_tuned_model != asked.model or is_deleted(job):
            continue
        if not job.has_succeeded or job.status is None or job.status.model_id is None:
            rule = f"is made by job {job.name}, which has not succeeded; wait for it, or name a base"
            raise invalid("model", rule, code="model_not_ready")
        return Start(kept.base, settings.base(kept.base), job.status.model_id)
    raise ApiError(404, f"The model {asked.model[:200]!r} does not exist.", code="model_not_found", param="model")


def build_job(asked: CreateJob, start: Start, settings: Settings, *, job_id: str, key: str) -> Raw:
    """Build the TuningJob; raises ApiError for what this API refuses. The rules of its fields are asked afterwards."""
    mode, given, place = _method(asked)
    suffix = names.check_suffix(asked.suffix)
    model = names.fine_tuned_model(start.base_name, settings.organization, suffix, job_id)
    multiplier = 1.0 if given.learning_rate_multiplier in (None, AUTO) else float(given.learning_rate_multiplier or 1)
    kept = Kept(
        model=asked.model,
        base=start.base_name,
        fine_tuned_model=model,
        learning_rate_multiplier=multiplier,
        suffix=asked.suffix,
        metadata=asked.metadata,
    )
    base = start.base
    spec: Raw = {
        "mode": mode,
        "model": base.model | ({"adapter": {"modelId": start.adapter}} if start.adapter else {}),
        "dataset": _dataset(asked),
        "volume": {"claimName": settings.claim_name},
        "training": _training(asked, given, base, base.training.resolved_learning_rate(mode) * multiplier, place),
        "lora": _given(base.lora),
        "tracking": _tracking(asked, base),
        "resources": _given(base.resources),
    }
    beta = given.beta if isinstance(given, DpoHyperparameters) else None
    if beta not in (None, AUTO):
        spec[DPO] = {"beta": beta}
    if base.queue_name is not None:
        spec["queueName"] = base.queue_name
    labels = {names.LABEL_API: "true", names.LABEL_REQUEST: request_hash(asked, key), names.LABEL_KEY: key}
    annotations = {names.ANNOTATION_REQUEST: kept.model_dump_json(exclude_none=True)}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": job_id, "labels": labels, "annotations": annotations},
        "spec": {group: value for group, value in spec.items() if value != {}},
    }


def param_of(asked: CreateJob) -> dict[str, str]:
    """Return which parameter of the request each field of the spec came from."""
    _, _, place = _method(asked)
    return {
        "spec.training.epochs": f"{place}.n_epochs",
        "spec.training.batchSize": f"{place}.batch_size",
        "spec.training.learningRate": f"{place}.learning_rate_multiplier",
        "spec.dpo.beta": f"{place}.beta",
        "spec.training.seed": "seed",
        "spec.dataset.path": "training_file",
        "spec.dataset.evaluation": "validation_file",
        "spec.tracking.experimentName": "integrations",
        "spec.model": "model",
    }


def _method(asked: CreateJob) -> tuple[str, Hyperparameters, str]:
    """Return the mode, its hyperparameters, and their place in the request; raises ApiError."""
    old = asked.hyperparameters
    if asked.method is None:
        return SFT, old or Hyperparameters(), _OLD_PLACE
    kind = asked.method.type
    if kind == "reinforcement":
        rule = "'reinforcement' is not here: there are no graders. Give 'supervised' or 'dpo'; for recorded rewards "
        raise invalid("method.type", rule + "apply a TuningJob of mode ppo")
    for other in ("supervised", "dpo", "reinforcement"):
        if other != kind and getattr(asked.method, other) is not None:
            raise invalid(f"method.{other}", f"stands beside method.type '{kind}'; remove one of them")
    group = asked.method.supervised if kind == "supervised" else asked.method.dpo
    given = group.hyperparameters if group is not None else None
    if old is not None and given is not None and _settings(old) != _settings(given):
        raise invalid(_OLD_PLACE, f"differs from method.{kind}.hyperparameters; remove one of them")
    if given is None and old is not None:
        return MODE_OF[kind], old, _OLD_PLACE
    return MODE_OF[kind], given or Hyperparameters(), f"method.{kind}.hyperparameters"


def _settings(given: Hyperparameters) -> Raw:
    return given.model_dump(exclude_none=True)


def _dataset(asked: CreateJob) -> Raw:
    dataset = {"path": names.upload_path(asked.training_file)}
    if asked.validation_file is not None:
        dataset["evaluation"] = names.upload_path(asked.validation_file)
    return dataset


def _training(asked: CreateJob, given: Hyperparameters, base: Base, rate: float, place: str) -> Raw:
    training = _given(base.training)
    if asked.validation_file is not None:
        training.pop("evalFraction", None)  # the file's rows are all that is held out
    if given.n_epochs not in (None, AUTO):
        training["epochs"] = given.n_epochs
        training.pop("maxSteps", None)
    if given.batch_size not in (None, AUTO):
        training["batchSize"] = given.batch_size
        training.pop("gradientAccumulationSteps", None)
    if given.learning_rate_multiplier not in (None, AUTO):
        if not 1e-10 <= rate <= 0.1:
            rule = f"makes a learning rate of {rate:g}, which must be between 1e-10 and 0.1"
            raise invalid(f"{place}.learning_rate_multiplier", rule)
        training["learningRate"] = float(f"{rate:.6g}")
    if asked.seed is not None:
        training["seed"] = asked.seed
    return training


def _tracking(asked: CreateJob, base: Base) -> Raw:
    tracking = _given(base.tracking)
    for place, integration in enumerate(asked.integrations or ()):
        if integration.type != "mlflow":
            rule = f"must be 'mlflow', got {integration.type[:40]!r}; the figures are in the result file, too"
            raise invalid(f"integrations[{place}].type", rule)
        if integration.wandb is not None:
            raise invalid(f"integrations[{place}].wandb", "stands beside type 'mlflow'; remove it")
        if integration.mlflow is not None:
            tracking["experimentName"] = integration.mlflow.experiment
    return tracking


def _given(group: ApiModel) -> Raw:
    """Dump what a group of the settings gives, what it leaves out stays out."""
    return group.model_dump(mode="json", by_alias=True, exclude_unset=True)
