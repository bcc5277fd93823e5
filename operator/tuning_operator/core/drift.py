"""Whether an object in the cluster is what we last applied. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.api.quantity import parse_quantity
from tuning_operator.core.constants import HASH_ANNOTATION

QUANTITIES = ("cpu", "memory")


def has_drifted(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> bool:
    """Return whether another state was applied last (by the digest), or what was applied was changed since.

    The API server adds defaults, which are no change; what we no longer want is seen by the digest.
    """
    applied = (there["metadata"].get("annotations") or {}).get(HASH_ANNOTATION)
    if applied != wanted["metadata"]["annotations"][HASH_ANNOTATION]:
        return True
    parts = [name for name in wanted if name not in ("apiVersion", "kind", "metadata")]
    labels = wanted["metadata"]["labels"]
    return not _has(labels, there["metadata"].get("labels") or {}) or any(
        not _has(wanted[name], there.get(name)) for name in parts
    )


def _has(wanted: Any, there: Any, name: str = "") -> bool:
    """Return whether `there` contains all of `wanted`."""
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return not wanted
        return all(_has(value, there.get(key), key) for key, value in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(there, list):
            return not wanted
        return len(wanted) == len(there) and all(_has(*pair, name) for pair in zip(wanted, there, strict=True))
    if name in QUANTITIES and there is not None:
        return parse_quantity(wanted) == parse_quantity(there)
    return bool(wanted == there) or (not wanted and there is None)  # "" and false are left out on the way
