"""The chain of a TuningJob: its stages in their order."""

from __future__ import annotations

from tuning_operator.tuning_job.adapter import AwaitAdapter, NoteAdapter
from tuning_operator.tuning_job.check import CheckStage
from tuning_operator.tuning_job.fetch import FetchStage
from tuning_operator.tuning_job.report import ReportStage
from tuning_operator.tuning_job.serve import ServeStage
from tuning_operator.tuning_job.stage import Stage
from tuning_operator.tuning_job.train import TrainStage

STAGES: tuple[Stage, ...] = (
    NoteAdapter(),
    FetchStage(),
    CheckStage(),
    AwaitAdapter(),
    TrainStage(),
    ReportStage(),
    ServeStage(),
)
