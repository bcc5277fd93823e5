"""What is remembered of the engine from its start to its end: how often it loaded, and of which adapter it ended."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

DEADLY_SECONDS = 10.0
"""An engine that ends so soon after an adapter was loaded or proven has probably ended of it."""
DEADLY_TIMES = 2
"""After so many ends an adapter is not tried again on this pod: it would take the others down for ever."""


@dataclass
class Loads:
    """How often the engine has loaded since it started; `file` keeps it for an agent that restarts beside it."""

    file: Path | None = None
    count: int = 0

    def set(self, count: int) -> None:
        """Remember `count`."""
        self.count = max(count, 0)
        if self.file is not None:
            self.file.write_text(str(self.count))

    def found(self, loaded: int) -> None:
        """Note an engine that was found with `loaded` adapters; one without any has just started."""
        self.set(max(loaded, self._noted()) if loaded else 0)

    def _noted(self) -> int:
        try:
            return int(self.file.read_text()) if self.file is not None else 0
        except (OSError, ValueError):
            return 0


@dataclass
class Blame:
    """Which adapter an end of the engine is put down to."""

    _ends: Counter[str] = field(default_factory=Counter)
    _suspect: tuple[str, float] | None = None
    """An adapter, and until when an end of the engine is its doing."""

    def is_deadly(self, model_id: str) -> bool:
        """Return whether the adapter has ended the engine too often."""
        return self._ends[model_id] >= DEADLY_TIMES

    def trying(self, model_id: str) -> None:
        """Make the adapter, which is being loaded or proven, the suspect if the engine ends now."""
        self._suspect = (model_id, math.inf)

    def tried(self, model_id: str, *, judged: bool, now: float) -> None:
        """Clear the adapter after a verdict; after anything else it stays suspect for a while."""
        if self._suspect is not None:  # else the engine has ended of it already
            self._suspect = None if judged else (model_id, now + DEADLY_SECONDS)

    def engine_ended(self, now: float) -> None:
        """Count the engine's end against the suspect, if there is one."""
        if self._suspect is not None and now < self._suspect[1]:
            self._ends[self._suspect[0]] += 1
        self._suspect = None
