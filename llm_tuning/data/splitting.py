"""The held-out rows of a run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_ROWS_TO_SPLIT = 20
"""Below this no row is held out: training needs them more, and the figures would be noise."""


def split(n_rows: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (training, held out), each in rising order; the same for the same arguments, on any machine."""
    everything = np.arange(n_rows, dtype=np.int64)
    if n_rows < MIN_ROWS_TO_SPLIT or fraction <= 0:
        return everything, everything[:0]
    held_out = max(1, round(n_rows * fraction))
    shuffled = np.random.default_rng(seed).permutation(n_rows).astype(np.int64)
    return np.sort(shuffled[held_out:]), np.sort(shuffled[:held_out])
