"""What is wrong with a pod or its Job, for a condition: shared by what is stuck and by what has failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_tuning.api.tuning_job import Progress


@dataclass(frozen=True)
class Trouble:
    """One CamelCase word, and a message that says what is wrong and what to do."""

    reason: str
    message: str


@dataclass(frozen=True)
class Reported:
    """What a pod at work has said of itself last."""

    progress: Progress
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Of a fetch: what the URIs were resolved to, by the group of the spec."""
    waiting: Trouble | None = None
    """Of a fetch: why no byte comes just now; of a training: for which rank the others wait."""
