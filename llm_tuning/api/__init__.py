"""The API models: the one source of field names, defaults, bounds and help texts."""

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
from llm_tuning.api.tuning_job import Evaluation, Progress, TuningJob, TuningJobSpec, TuningJobStatus
from llm_tuning.modes.dpo import DpoSpec
from llm_tuning.modes.kto import KtoSpec
from llm_tuning.modes.ppo import PpoSpec

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
