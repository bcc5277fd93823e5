"""What happened to a job, as events."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.openai_api.events import events
from llm_tuning.openai_api.run_files import Point
from tests.support.openai_world import SUCCEEDED, TRAINING, condition, failed
from tests.unit.llm_tuning.openai_api.test_job_view import made

NOW = 1_795_939_200.0 + 3600
CREATED = 1_795_939_200
"""2026-11-29T08:00:00Z"""


STEPS = [
    Point(1, CREATED + 90.4, train_loss=2.5),
    Point(2, CREATED + 90.9, train_loss=2.25, valid_loss=2.0, valid_mean_token_accuracy=0.5),
    Point(10, CREATED + 290.0, train_loss=0.5),
]


def _messages(status: dict[str, Any] | None, steps: list[Point] | None = None, **given: Any) -> list[str]:
    return [event.message for event in events(made(status, **given), steps or [], NOW)]


def test_a_whole_run_reads_in_its_order() -> None:
    found = events(made(SUCCEEDED, suffix="faq"), STEPS, NOW)
    assert [event.message for event in found[:-1]] == [
        "job ftjob-1 is created",
        "files are valid: 20 of 20 rows are kept",
        "step 1 of 10: train loss 2.5",
        "step 2 of 10: train loss 2.25, valid loss 2",
        "step 10 of 10: train loss 0.5",
        "trained: 10 steps",
        "evaluated: loss on 2 held-out rows",
    ]
    assert found[-1].message.startswith("job has succeeded, and its model is ft:gpt-4.1-mini:acme:faq:")
    assert [event.id for event in found] == sorted(event.id for event in found)
    assert len({event.id for event in found}) == len(found)


def test_a_step_has_its_figures_as_data() -> None:
    event = next(event for event in events(made(TRAINING), STEPS, NOW) if event.data and event.data["step"] == 2)
    assert (event.type, event.created_at) == ("metrics", CREATED + 90)
    figures = {"train_loss": 2.25, "valid_loss": 2.0, "valid_mean_token_accuracy": 0.5}
    assert event.data == {"step": 2, "total_steps": 10} | figures


def test_what_stalls_a_job_is_a_warning_and_its_end_an_error() -> None:
    stalled = condition("Stalled", "True", "Unschedulable", "no node has a GPU", at="2026-11-29T08:02:00Z")
    found = events(made({"conditions": [stalled]}), [], NOW)
    assert (found[-1].level, found[-1].message) == ("warn", "Unschedulable: no node has a GPU")
    found = events(made(failed("DatasetInvalid", "spec.dataset.path: row 3")), [], NOW)
    assert (found[-1].level, found[-1].message) == ("error", "job has failed: DatasetInvalid: training_file: row 3")


def test_a_message_whose_numbers_change_is_the_same_event() -> None:
    ids = set()
    for nodes in (3, 4):
        stalled = condition("Stalled", "True", "Unschedulable", f"0/{nodes} nodes", at="2026-11-29T08:02:00Z")
        ids.add(events(made({"conditions": [stalled]}), [], NOW)[-1].id)
    assert len(ids) == 1


def test_a_job_that_no_operator_has_seen_for_a_minute_says_so() -> None:
    assert len(events(made(), [], CREATED + 59)) == 1
    found = events(made(), [], CREATED + 61)
    assert found[-1].level == "warn"
    assert "operator has not seen this job" in found[-1].message


SUSPENDED = "no pod runs; set spec.suspend to false to resume from the last checkpoint"
"""The operator's words, for whom kubectl is at hand."""


def _suspended(at: str) -> dict[str, Any]:
    return {"conditions": [condition("Suspended", "True", "Suspended", SUSPENDED, at=at)]}


@pytest.mark.parametrize("pods_gone", ["2026-11-29T08:03:00Z", "2026-11-29T08:04:09Z"])
def test_a_cancelled_job_ends_with_that(pods_gone: str) -> None:
    """Its pods end as those of a paused one do, but nothing can resume it."""
    job = made(_suspended(pods_gone), suspend=True)
    job.metadata["annotations"]["openai.tuning.llmtuning.dev/cancelled"] = "2026-11-29T08:04:00Z"
    assert [event.message for event in events(job, [], NOW)] == ["job ftjob-1 is created", "job is cancelled"]


def test_a_paused_job_says_so_and_how_it_goes_on() -> None:
    assert _messages(_suspended("2026-11-29T08:04:00Z"), suspend=True)[-1] == (
        "Suspended: no pod runs; resume the job to go on from the last checkpoint"
    )
