"""What a user who has mistyped a name most likely means."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import lru_cache


def closest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that `word` is nearest to, upper and lower case aside; None where none is near."""
    spelled = {name.lower(): name for name in names if len(name) < 2 * len(word)}
    return spelled.get(_closest(word.lower(), tuple(spelled)))


@lru_cache(maxsize=64)
def _closest(word: str, names: tuple[str, ...]) -> str:
    """Return the nearest name or "", cached: a million rows may all have the same wrong name."""
    return next(iter(get_close_matches(word, names, n=1, cutoff=0.7)), "")


def did_you_mean(word: str, names: Iterable[str], *, otherwise: str = "") -> str:
    """Return `did you mean NAME?`, or `otherwise` where no name is near."""
    name = closest(word, names)
    return f"did you mean {name}?" if name else otherwise
