"""Pairs of rated answers: which two answers of one prompt are compared, and how many pairs a prompt makes.

What is chosen follows from the answers and their ratings alone, never from the order of the rows.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_PAIRS_PER_PROMPT = 8
"""The default: of the answers of one prompt, 5 make up to 10 pairs, and 20 up to 190 that mostly say the same."""
_PARTS_BITS = 4
"""Answers are grouped in so many parts (2^4), so that sorting them takes little memory besides them."""
_ROUNDING = 1e-9
"""Relative: 0.3 and 0.2 differ by at least 0.1, whatever binary fractions say."""
_SAME = 1e-15
"""Relative: the mean of 0.1, 0.2 and 0.3 is 0.2, though its last bits are others."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """Which answers of a prompt make pairs."""

    min_difference: float = 0.0
    """Ratings of a pair differ, and by at least this."""
    max_pairs_per_prompt: int = MAX_PAIRS_PER_PROMPT
    """The widest differences come first."""

    def differ(self, high: float, low: float) -> bool:
        """Return whether two ratings are far enough apart."""
        size = max(abs(high), abs(low), self.min_difference)
        return high - low > _SAME * size and high - low >= self.min_difference - _ROUNDING * size


@dataclass(frozen=True, slots=True)
class RatedPair:
    """Two answers of one prompt, by their places among the answers."""

    chosen: int
    rejected: int
    difference: float


@dataclass(slots=True)
class PairingCounts:
    """What became of the answers, once all pairs are made."""

    pairs: int = 0
    prompts: int = 0
    one_answer: int = 0
    """Prompts with a single answer."""
    tied: int = 0
    """Prompts with several answers, no two of them far enough apart."""
    averaged: int = 0
    """Answers that were rated several times, and differently."""


class RatedAnswers:
    """Collects the answers of a data set in 24 bytes each, and pairs those of one prompt."""

    def __init__(self, pairing: Pairing) -> None:
        self.counts = PairingCounts()
        self._pairing = pairing
        self._prompts, self._answers, self._ratings = array("Q"), array("Q"), array("d")

    def add(self, *, prompt: int, answer: int, rating: float) -> None:
        """Take in the next answer; the keys have 64 bits and are equal for equal prompts, and for equal answers."""
        self._prompts.append(prompt)
        self._answers.append(answer)
        self._ratings.append(rating)

    def __len__(self) -> int:
        return len(self._ratings)

    def pairs(self) -> Iterator[RatedPair]:
        """Yield the pairs, prompt after prompt in the order of their keys, and fill `counts`. Call it once."""
        import numpy as np  # the modes are imported by commands that need none

        prompts = np.frombuffer(self._prompts, dtype=np.uint64)
        part_of = (prompts >> np.uint64(64 - _PARTS_BITS)).astype(np.uint8)
        for part in range(1 << _PARTS_BITS):
            places = np.flatnonzero(part_of == part)
            places = places[np.argsort(prompts[places], kind="stable")]
            bounds = np.flatnonzero(np.diff(prompts[places])) + 1
            edges = [0, *bounds.tolist(), len(places)] if len(places) else [0]
            for start, end in pairwise(edges):
                yield from self._of_prompt(places[start:end])

    def _of_prompt(self, places: NDArray[np.intp]) -> Iterator[RatedPair]:
        counts = self.counts
        counts.prompts += 1
        if len(places) == 1:
            counts.one_answer += 1
            return
        rated = self._distinct(places.tolist())
        found = choose_pairs([rating for rating, _, _ in rated], self._pairing)
        counts.one_answer += len(rated) == 1
        counts.tied += len(rated) > 1 and not found
        counts.pairs += len(found)
        for chosen, rejected in found:
            (high, _, one), (low, _, other) = rated[chosen], rated[rejected]
            yield RatedPair(one, other, high - low)

    def _distinct(self, places: Sequence[int]) -> list[tuple[float, int, int]]:
        """Return (rating, key, place) of each different answer, the best first; one rated often has its mean."""
        by_key: dict[int, list[int]] = {}
        for place in places:
            by_key.setdefault(self._answers[place], []).append(place)
        rated = []
        for key, same in by_key.items():
            ratings = sorted(self._ratings[place] for place in same)
            self.counts.averaged += ratings[0] != ratings[-1]
            rated.append((ratings[0] if ratings[0] == ratings[-1] else sum(ratings) / len(ratings), key, same[0]))
        return sorted(rated, key=lambda answer: (-answer[0], answer[1]))


def choose_pairs(ratings: Sequence[float], pairing: Pairing) -> list[tuple[int, int]]:
    """Return the pairs (better, worse) among `ratings`, which fall; the widest first, equal ones by their places.

    A pair of the i-th best and the j-th worst has (i + 1)(j + 1) - 1 others at least as wide before it, so only few of
    the pairs of a long list are looked at.
    """
    most, last = pairing.max_pairs_per_prompt, len(ratings) - 1
    candidates = (
        (best, last - worst)
        for best in range(min(most, last))
        for worst in range(min(most // (best + 1), last - best))
        if pairing.differ(ratings[best], ratings[last - worst])
    )
    return heapq.nsmallest(most, candidates, key=lambda pair: (ratings[pair[1]] - ratings[pair[0]], pair[0], -pair[1]))
