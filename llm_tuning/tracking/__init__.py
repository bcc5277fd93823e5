"""Metrics of a run: a local file first, and from there to MLflow by a process of its own.

    recipe -> RunReporter -> MetricsFile (work/metrics.jsonl)  <- tailed by -  sender process -> MLflow
                                                   Tracker starts it, asks for the run id, ends it

MLflow lives in a second process and not on a thread of the trainer, because only a process can be given up on: its
client reads time-outs from the environment of the whole process, joins its upload threads when Python exits (a silent
server then holds the exit), takes seconds of the interpreter lock to import, and logs to the user's terminal. The
file between the two makes it simple: nothing a server does can reach a training step, and what was not sent is there.
"""

from llm_tuning.models.metrics_file import MetricsFile, TrainingSummary, read_metrics, summarise
from llm_tuning.tracking.stores import check_tracking_uri, redact, shown_uri
from llm_tuning.tracking.tracker import SERVER_BUDGET_SECONDS, Tracker, TrackingResult

__all__ = [
    "SERVER_BUDGET_SECONDS",
    "MetricsFile",
    "Tracker",
    "TrackingResult",
    "TrainingSummary",
    "check_tracking_uri",
    "read_metrics",
    "redact",
    "shown_uri",
    "summarise",
]
