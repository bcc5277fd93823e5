"""The conditions of an object of this machine, as the operator writes them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Raw = dict[str, Any]
TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
MESSAGE_CHARACTERS = 4096


class Conditions:
    """Conditions as they are to be from now on; begins with those that the object has."""

    def __init__(self, raw: Mapping[str, Any], now: str) -> None:
        before = (raw.get("status") or {}).get("conditions", [])
        self._found: dict[str, Raw] = {each["type"]: each for each in before}
        self._generation = raw["metadata"].get("generation") or 0
        self._now = now

    def set(self, kind: str, status: str, reason: str, message: str = "") -> None:
        """Set one; its time changes with its status alone."""
        before = self._found.get(kind, {})
        since = before.get("lastTransitionTime") if before.get("status") == status else None
        self._found[kind] = {
            "type": str(kind),
            "status": status,
            "reason": str(reason),
            "message": message[:MESSAGE_CHARACTERS],
            "observedGeneration": self._generation,
            "lastTransitionTime": since or self._now,
        }

    def listed(self, order: Iterable[str]) -> list[Raw]:
        """Return those that are known, in this order."""
        return [self._found[kind] for kind in order if kind in self._found]
