"""The API models: the one source of field names, defaults, bounds and help texts.

The custom resources are imported when they are asked for: `--help` and a run need none, and would take a tenth longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_tuning.api.kube import Condition
from llm_tuning.api.tuning import (
    AdapterRef,
    DatasetSpec,
    LoraSpec,
    ModelSpec,
    RunOptions,
    TrackingSpec,
    TrainingSpec,
    TuningConfig,
)
from llm_tuning.modes.dpo import DpoSpec
from llm_tuning.modes.kto import KtoSpec
from llm_tuning.modes.ppo import PpoSpec

if TYPE_CHECKING:
    from llm_tuning.api.tuning_job import Evaluation, Progress, TuningJob, TuningJobSpec, TuningJobStatus

__all__ = [
    "AdapterRef",
    "Condition",
    "DatasetSpec",
    "DpoSpec",
    "Evaluation",
    "KtoSpec",
    "LoraSpec",
    "ModelSpec",
    "PpoSpec",
    "Progress",
    "RunOptions",
    "TrackingSpec",
    "TrainingSpec",
    "TuningConfig",
    "TuningJob",
    "TuningJobSpec",
    "TuningJobStatus",
]

_OF_A_CLUSTER = ("Evaluation", "Progress", "TuningJob", "TuningJobSpec", "TuningJobStatus")


def __getattr__(name: str) -> Any:
    if name not in _OF_A_CLUSTER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llm_tuning.api import tuning_job

    return getattr(tuning_job, name)
