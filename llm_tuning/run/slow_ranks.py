"""Which rank of a run is far slower than the others, which wait for it in each step. Torch-free.

Compared is the time of each for its own part of a step, without what it waits for the others: steps themselves take
all ranks equally long. Nor are shares of a step equally long: with a row for each rank the first always has the
longest one. So a rank is slow by its seconds and by its seconds a token. The longest step of some does not count: one
may take long for a reason of its own. Nothing is done about it but to say so: a slow rank makes the same run.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

SLOW_TIMES, WELL_TIMES = 3.0, 2.0
"""From how many times the others' median on a rank is told, and below which it is slow no more: two cards of a kind
differ by less."""
WINDOW_SECONDS = 20.0
"""Of the slowest rank's own time: what is told is no hiccup."""
WINDOW_STEPS = 5


@dataclass
class SlowRanks:
    """Takes in the steps of a run, and keeps what is to be told."""

    name: Callable[[int], str]
    told: str | None = None
    """Of the rank that is slow just now; its figures are those of the moment at which it was found so."""
    _rank: int | None = None
    _steps: deque[Sequence[float]] = field(default_factory=deque)
    _by_token: deque[Sequence[float]] = field(default_factory=deque)
    _seconds: float = 0.0

    def step(self, own_seconds: Sequence[float], tokens: Sequence[int]) -> bool:
        """Take in each rank's own seconds and tokens of a step; returns whether there is other news than before.

        A zero stands for a time that is not known, or for a rank without rows: nothing is concluded from such a step.
        """
        if len(own_seconds) < 2 or min(own_seconds) <= 0 or min(tokens) <= 0:
            return False
        self._steps.append(own_seconds)
        self._by_token.append([seconds / count for seconds, count in zip(own_seconds, tokens, strict=True)])
        self._seconds += max(own_seconds)
        while len(self._steps) > WINDOW_STEPS and self._seconds - max(self._steps[0]) >= WINDOW_SECONDS:
            self._seconds -= max(self._steps.popleft())
            self._by_token.popleft()
        if len(self._steps) < WINDOW_STEPS or self._seconds < WINDOW_SECONDS:
            return False
        before, self.told = self.told, self._compare()
        return before != self.told

    def _compare(self) -> str | None:
        seconds, by_token = _means(self._steps), _means(self._by_token)
        times = [min(_times(seconds, rank), _times(by_token, rank)) for rank in range(len(seconds))]
        slowest = times.index(max(times))
        limit = WELL_TIMES if slowest == self._rank else SLOW_TIMES
        if times[slowest] < limit:
            self._rank = None
            return None
        if slowest == self._rank:
            return self.told
        self._rank = slowest
        return (
            f"{self.name(slowest)} is slow: it takes {seconds[slowest]:.2g} s for its own part of a step, the others "
            f"{_of_others(seconds, slowest):.2g} s in the median, and they wait for it in each"
        )


def _means(steps: Iterable[Sequence[float]]) -> list[float]:
    """Return the mean of each rank without its longest step."""
    return [statistics.fmean(sorted(of_rank)[:-1]) for of_rank in zip(*steps, strict=True)]


def _of_others(numbers: Sequence[float], rank: int) -> float:
    return statistics.median([*numbers[:rank], *numbers[rank + 1 :]])


def _times(numbers: Sequence[float], rank: int) -> float:
    return numbers[rank] / _of_others(numbers, rank)
