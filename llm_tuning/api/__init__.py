"""The API models: the one source of field names, defaults, bounds and help texts."""

from llm_tuning.api.tuning import (
    AdapterRef,
    DatasetSpec,
    LoraSpec,
    Mode,
    ModelSpec,
    PpoSpec,
    RunOptions,
    TrackingSpec,
    TrainingSpec,
    TuningConfig,
)

__all__ = [
    "AdapterRef",
    "DatasetSpec",
    "LoraSpec",
    "Mode",
    "ModelSpec",
    "PpoSpec",
    "RunOptions",
    "TrackingSpec",
    "TrainingSpec",
    "TuningConfig",
]
