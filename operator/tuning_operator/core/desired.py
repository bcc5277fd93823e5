"""What a pass wants: children, status, Events, and when to look again. Only data; `worker` carries it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event on the TuningJob; `type` is Normal or Warning."""

    type: str
    reason: str
    message: str


@dataclass(frozen=True)
class JobRef:
    """A Job that is to go, exactly this one."""

    name: str
    uid: str


@dataclass
class Desired:
    """`status` None: nothing is to be written. Jobs are created once and never changed."""

    create_jobs: list[dict[str, Any]] = field(default_factory=list)
    create_services: list[dict[str, Any]] = field(default_factory=list)
    """InferenceServices, for spec.serve; made once, and theirs alone from then on."""
    delete_jobs: list[JobRef] = field(default_factory=list)
    delete_self: bool = False
    status: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)
    requeue_after: float | None = None
    needs_events: bool = False
    """Something waits without saying why in its own status: the Warning Events are to be read, then decided again."""

    needs_pods: bool = False
    """A pod that should be there is not seen: pods are to be read, then decided again. A watch may have lost it."""

    def look_again(self, seconds: float) -> None:
        """Ask for another pass in at most `seconds`."""
        self.requeue_after = seconds if self.requeue_after is None else min(self.requeue_after, seconds)
