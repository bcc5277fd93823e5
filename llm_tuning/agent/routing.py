"""Which adapter answers a request. Pure.

A user's requests stay with one target: each target draws a number from the user's name and its own, and the highest
score by weight wins (weighted rendezvous hashing: Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA
2005). Nothing is stored, every replica decides alike, and a changed weight moves only the share that it has to.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_tuning.agent.contract import DesiredRoute, DesiredTarget

Blocked = Callable[[str], str | None]
"""Why the adapter of a model_id must not answer, or None if it may."""


@dataclass(frozen=True)
class NotServed:
    """No target of the route may answer."""

    why: str


def choose(route: DesiredRoute, blocked: Blocked, user: str | None) -> str | NotServed:
    """Choose the model_id for a request of `user` (None: the request names no user).

    Only targets that may answer share the requests: a canary that is not loaded yet takes none.
    """
    candidates: list[DesiredTarget] = []
    reasons: list[str] = []
    for target in route.targets:
        if target.weight == 0:
            continue
        name = target.model_id
        why = (target.message or target.reason or "not there yet") if name is None else blocked(name)
        if why is None:
            candidates.append(target)
        else:
            reasons.append(f"{name or target.tuning_job}: {why}")
    if not candidates:
        return NotServed("; ".join(reasons))
    names = [str(target.model_id) for target in candidates]
    weights = [target.weight for target in candidates]
    if user is None:
        return random.choices(names, weights)[0]
    return _stay(names, weights, user)


def _stay(names: Sequence[str], weights: Sequence[int], user: str) -> str:
    def score(name: str, weight: int) -> float:
        # JSON may hold half a surrogate pair; 48 bits, so that no drawn number is rounded to 1, whose logarithm is 0.
        digest = hashlib.blake2b(f"{name}\0{user}".encode(errors="surrogatepass"), digest_size=6).digest()
        drawn = (int.from_bytes(digest, "big") + 0.5) / 2**48
        return -weight / math.log(drawn)

    return max(zip(names, weights, strict=True), key=lambda pair: score(*pair))[0]
