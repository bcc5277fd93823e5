"""The scores in `evaluation.json`: those of tool calls in words, and what tracking has of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_tuning.core.text import counted
from llm_tuning.modes import all_scores
from llm_tuning.modes.mode import SCORES

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


def score_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of the mode and of calls by the names that tracking has: the tuned model's as `eval/<score>`.

    Those that every mode is measured by are tracked while it trains.
    """
    found = {}
    names = [score.name for score in all_scores() if score not in SCORES]
    for policy in POLICIES:
        scores = metrics.get(policy) or {}
        for name in names:
            if isinstance(value := scores.get(name), int | float):
                found[f"eval/{name}" if policy == "tuned" else f"eval/{policy}_{name}"] = float(value)
    return found
