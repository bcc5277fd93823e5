"""One pass over a TuningJob, and the questions that tests ask of what a pass of either kind wants."""

from __future__ import annotations

from typing import Any

from llm_tuning.pod.roles import CHECK
from tests.support.operator_objects import CHECKED, SETTINGS, Raw, after, jobs_in, make_observed, make_pod, make_status
from tuning_operator.core.desired import Desired
from tuning_operator.core.settings import Settings
from tuning_operator.tuning_job.desire import desire

CHECKED_POD = make_pod(CHECK, phase="Succeeded", result=CHECKED)
VALID = make_status(DatasetValid="True/DatasetValid")
"""The status of a TuningJob whose data has been checked."""


def wanted(job: Raw | None = None, *, seconds: float = 70, settings: Settings = SETTINGS, **observed: Any) -> Desired:
    """What a pass wants for `job`, `seconds` after it was made; `observed` is for `make_observed`."""
    return desire(make_observed(job, **observed), settings, after(seconds))


def created(desired: Desired) -> list[str]:
    """The names of the Jobs that are to be made."""
    return [job["metadata"]["name"] for job in jobs_in(desired)]


def condition(desired: Desired, kind: str = "Ready") -> tuple[str, str]:
    """Status and reason of a condition; the default is an InferenceService's."""
    return full_condition(desired, kind)[:2]


def message(desired: Desired, kind: str = "Ready") -> str:
    """The message of a condition."""
    return full_condition(desired, kind)[2]


def full_condition(desired: Desired, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition."""
    assert desired.status is not None
    found = next(c for c in desired.status["conditions"] if c["type"] == kind)
    return found["status"], found["reason"], found["message"]


def phase(desired: Desired) -> str:
    """The phase in the status."""
    assert desired.status is not None
    return str(desired.status["phase"])
