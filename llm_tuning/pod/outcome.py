"""What came of a run: the TrainResult of a model's manifest."""

from __future__ import annotations

import math
from typing import Any

from llm_tuning.api.tuning_job import Evaluation
from llm_tuning.models.manifest import Manifest
from llm_tuning.models.registry import Registry
from llm_tuning.pod.contract import MODELS, PodReason, TrainResult


def result_of(registry: Registry, model_id: str) -> TrainResult:
    """Build the result of a finished model from its manifest; raises InputError where there is none."""
    manifest = registry.require(model_id)
    training = manifest.training
    return TrainResult(
        ok=True,
        reason=PodReason.TRAINED,
        message=_message(manifest),
        model_id=model_id,
        adapter_path=f"{MODELS}/{model_id}",
        mlflow_run_id=manifest.mlflow.run_id if manifest.mlflow else None,
        evaluation=evaluation_of(manifest.metrics),
        held_out_rows=int(manifest.metrics.get("held_out_rows") or 0),
        registered=registry.get(model_id) is not None,
        steps=training.steps if training else 0,
        epochs=training.epochs if training else None,
        loss=training.loss if training else None,
    )


def evaluation_of(metrics: dict[str, Any]) -> Evaluation | None:
    """Return the scores of `evaluation.json` that a status has; None where nothing was held out."""
    scores = {
        f"{policy}_{name}": float(f"{value:.6g}")  # a status is read by people
        for policy in ("base", "start", "tuned")
        for name, value in (metrics.get(policy) or {}).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    known: dict[str, Any] = {name: value for name, value in scores.items() if name in Evaluation.model_fields}
    return Evaluation.parse({**known, "held_out_rows": metrics.get("held_out_rows")}) if known else None


def _message(manifest: Manifest) -> str:
    training = manifest.training
    if training is None:
        return "finished"
    early = f", stopped early: {training.stopped_early}" if training.stopped_early else ""
    steps, tokens = f"{training.steps:,} steps, {training.epochs:g} epochs", f"{training.tokens:,} tokens"
    warnings = "".join(f". Warning: {warning}" for warning in manifest.metrics.get("warnings") or ())
    return f"{steps}, {tokens} in {training.seconds:,.0f} s{early}{warnings}"
