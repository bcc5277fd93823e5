"""The roles of a TuningJob's pods, in the order of the chain: what the operator, the pods and the client know of each.

A role is a subcommand of `llm_tuning.pod` (a module of that name with a `run`), a label on the pod, and the end of its
Job's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_tuning.pod.contract import CheckResult, FetchResult, PodResult, TrainResult

FETCH, CHECK, TRAIN, REPORT = "fetch", "check", "train", "report"


@dataclass(frozen=True)
class PodRole:
    """One role; other containers may be injected beside its own."""

    name: str
    container: str
    """The name of the container that does the work."""
    result: type[PodResult]
    """What it leaves as its termination message."""
    has_spec: bool = True
    """Whether its input is a TuningJob's spec (`PodInput`); else it reads one of its own."""
    is_followed: bool = True
    """Whether its log is part of what a user follows."""


ROLES = {
    role.name: role
    for role in (
        PodRole(FETCH, "fetch", FetchResult, has_spec=False),
        PodRole(CHECK, "check", CheckResult),
        PodRole(TRAIN, "trainer", TrainResult),
        PodRole(REPORT, "report", TrainResult, is_followed=False),
    )
}
