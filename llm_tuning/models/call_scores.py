"""The scores of tool calls in `evaluation.json`, in words and as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.core.text import counted
from llm_tuning.modes.mode import CALL_SCORES

POLICIES = ("base", "start", "tuned")


def calls_note(metrics: Mapping[str, Any]) -> str:
    """Say of which answers the scores of calls are, or why there are none; empty for rows without tools."""
    calls = metrics.get("calls")
    if not isinstance(calls, Mapping):
        return ""
    if calls.get("reason"):
        return f"not scored: {calls['reason']}"
    with_calls, without = calls.get("with_calls", 0), calls.get("without_calls", 0)
    left_out = (
        f"; {counted(calls['not_read'], 'recorded call')} could not be read back" if calls.get("not_read") else ""
    )
    asked = f"{counted(with_calls, 'held-out prompt')} with a call, {without} with words"
    return f"answers generated to {asked}{left_out}"


def call_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of calls by the names that tracking has: those of the tuned model as other held-out scores."""
    found = {}
    for policy in POLICIES:
        scores = metrics.get(policy) or {}
        for score in CALL_SCORES:
            if isinstance(value := scores.get(score.name), int | float):
                found[f"eval/{score.name}" if policy == "tuned" else f"eval/{policy}_{score.name}"] = float(value)
    return found
