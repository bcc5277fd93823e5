"""`report`: the result of a finished run, read from its manifest once more."""

from __future__ import annotations

from llm_tuning.cli.report import progress_of, unfinished_message
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.models.registry import Registry
from llm_tuning.pod.contract import PodReason, TrainResult
from llm_tuning.pod.job import PodJob
from llm_tuning.pod.outcome import result_of


class ModelNotFound(InputError):  # noqa: N818 - the input is at fault
    """There is no run of this name on the claim."""


def run(job: PodJob) -> TrainResult:
    """Return the result of a finished model; raises TryAgain while unfinished, ModelNotFound where none was begun."""
    registry, model_id = Registry(job.models), job.input.model_id
    registry.heal()
    if registry.find(model_id) is not None:
        return result_of(registry, model_id)
    progress = progress_of(job.models, model_id)
    if progress is None:
        raise ModelNotFound(registry.unknown(model_id).problems)
    raise TryAgain(PodReason.UNFINISHED, unfinished_message(progress))
