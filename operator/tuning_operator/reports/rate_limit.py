"""How often one pod may report: bursts are fine, a flood is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_SENDERS = 2048
"""Above it, those whose allowance is whole again are forgotten."""


@dataclass
class RateLimit:
    """A token bucket a sender."""

    burst: float = 10.0
    per_second: float = 5.0
    """A trainer posts every five seconds."""
    clock: Callable[[], float] = time.monotonic
    _left: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Sender -> (what was left, when)."""

    def allows(self, sender: str) -> bool:
        """Return whether one more report is within the sender's limit; only then is it counted."""
        now = self.clock()
        left = self._left_at(sender, now)
        if left < 1:
            return False
        self._left[sender] = (left - 1, now)
        if len(self._left) > MAX_SENDERS:
            self._left = {name: kept for name, kept in self._left.items() if self._left_at(name, now) < self.burst}
        return True

    def _left_at(self, sender: str, now: float) -> float:
        left, at = self._left.get(sender, (self.burst, now))
        return min(self.burst, left + (now - at) * self.per_second)
