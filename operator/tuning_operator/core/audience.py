"""For whom the token of a reporting pod is: the one object that it may report for."""

from __future__ import annotations

FETCH_OF_SERVICE = "inferenceservice-fetch"
"""The pod that fetches an InferenceService's base: it reaches the world, and says nothing of adapters."""


def audience_of(namespace: str, name: str, uid: str, kind: str = "tuningjob") -> str:
    """Return the audience of an object's pod tokens; the uid keeps out a namesake that was deleted and made again."""
    return f"{kind}.tuning.llmtuning.dev/{namespace}/{name}/{uid}"
