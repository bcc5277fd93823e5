"""Held-out scores as metrics, and in a status."""

from __future__ import annotations

from llm_tuning.models.held_out_scores import score_metrics
from llm_tuning.pod.outcome import evaluation_of

METRICS = {
    "held_out_rows": 20,
    "base": {"loss": 2.0, "calls_parsed": 0.5, "calls_equal": 0.125},
    "start": None,
    "tuned": {"loss": 1.0, "calls_parsed": 1, "calls_equal": 0.875},
}


def test_tracking_has_those_of_the_tuned_model_beside_other_held_out_scores() -> None:
    assert score_metrics(METRICS) == {
        "eval/base_calls_parsed": 0.5,
        "eval/base_calls_equal": 0.125,
        "eval/calls_parsed": 1.0,
        "eval/calls_equal": 0.875,
    }
    assert score_metrics({"base": None, "tuned": {"loss": 1.0, "tokens": 12}}) == {}
    assert score_metrics({}) == {}


def test_tracking_has_the_scores_of_the_mode() -> None:
    scores = {"loss": 1.0, "reward_accuracy": 0.75, "short_pairs": 4}
    assert score_metrics({"start": {"reward_accuracy": 0.5}, "tuned": scores}) == {
        "eval/start_reward_accuracy": 0.5,
        "eval/reward_accuracy": 0.75,
        "eval/short_pairs": 4.0,
    }


def test_a_status_has_the_share_of_calls_as_recorded_alone() -> None:
    evaluation = evaluation_of(METRICS)
    assert evaluation is not None
    found = evaluation.model_dump(exclude_none=True)
    assert {name: value for name, value in found.items() if "calls" in name} == {
        "base_calls_equal": 0.125,
        "tuned_calls_equal": 0.875,
    }
