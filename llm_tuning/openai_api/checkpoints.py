"""The checkpoints of a job as OpenAI has them: those that a run keeps while it trains, and the adapter at the end."""

from __future__ import annotations

import hashlib

from llm_tuning.client.objects import TuningJobView
from llm_tuning.openai_api.job_request import Kept
from llm_tuning.openai_api.run_files import Kept as KeptCheckpoint
from llm_tuning.openai_api.run_files import RunFiles
from llm_tuning.openai_api.wire import CheckpointMetrics, JobCheckpoint


def checkpoints(job: TuningJobView, files: RunFiles) -> list[JobCheckpoint]:
    """List the checkpoints of a job, the last step first; reads its run's files."""
    model_id = job.status.model_id if job.status is not None else None
    kept = Kept.of(job)
    name = kept.fine_tuned_model if kept is not None else model_id or job.name
    return [_checkpoint(job, name, each) for each in reversed(files.checkpoints(model_id))]


def _checkpoint(job: TuningJobView, name: str, kept: KeptCheckpoint) -> JobCheckpoint:
    figures = kept.figures
    metrics = CheckpointMetrics(
        step=kept.step,
        train_loss=figures.train_loss,
        valid_loss=figures.valid_loss,
        valid_mean_token_accuracy=figures.valid_mean_token_accuracy,
        full_valid_loss=figures.valid_loss if kept.is_published else None,
        full_valid_mean_token_accuracy=figures.valid_mean_token_accuracy if kept.is_published else None,
    )
    digest = hashlib.sha256(f"{job.uid}\n{kept.step}\n{kept.is_published}".encode()).hexdigest()[:24]
    return JobCheckpoint(
        id=f"ftckpt-{digest}",
        created_at=kept.created_at,
        fine_tuned_model_checkpoint=name if kept.is_published else f"{name}:ckpt-step-{kept.step}",
        fine_tuning_job_id=job.name,
        metrics=metrics,
        step_number=kept.step,
    )
