"""What is wrong with a pod or its Job, for a condition: shared by what is stuck and by what has failed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trouble:
    """One CamelCase word, and a message that says what is wrong and what to do."""

    reason: str
    message: str
