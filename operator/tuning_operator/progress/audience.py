"""For whom a trainer's token is: the one TuningJob whose progress it may report."""

from __future__ import annotations


def audience_of(namespace: str, name: str, uid: str) -> str:
    """The audience of the token in a trainer pod; the uid keeps out a namesake that was deleted and made again."""
    return f"tuningjob.tuning.llmtuning.dev/{namespace}/{name}/{uid}"
