"""TuningJobs and InferenceServices from Python: `TuningClient`, and `AsyncTuningClient` for callers with an event loop.

It needs the extra `client` (`pip install '.[client]'` in a clone), and neither torch nor kopf nor MLflow.
"""

from llm_tuning.client.aio import AsyncJob, AsyncService, AsyncTuningClient
from llm_tuning.client.answers import ChatAnswer, ChatPiece
from llm_tuning.client.connection import Connection
from llm_tuning.client.errors import (
    ClusterError,
    Conflict,
    Forbidden,
    NotFound,
    NotServed,
    TuningFailed,
    Unavailable,
    WaitTimeout,
)
from llm_tuning.client.logs import LossPoint
from llm_tuning.client.sync import Job, Service, TuningClient

__all__ = [
    "AsyncJob",
    "AsyncService",
    "AsyncTuningClient",
    "ChatAnswer",
    "ChatPiece",
    "ClusterError",
    "Conflict",
    "Connection",
    "Forbidden",
    "Job",
    "LossPoint",
    "NotFound",
    "NotServed",
    "Service",
    "TuningClient",
    "TuningFailed",
    "Unavailable",
    "WaitTimeout",
]
