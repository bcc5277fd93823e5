"""One paragraph says where it is, why, and what to do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from llm_tuning.client.explain import explain_job, explain_service
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from tests.support.fake_api_server import TIME
from tests.unit.llm_tuning.client.conftest import FAILED, SPEC, SUCCEEDED, condition, training

NOW = datetime(2026, 11, 29, 8, 5, tzinfo=UTC)
METADATA = {"name": "faq", "namespace": "team", "uid": "u", "generation": 1, "creationTimestamp": TIME}


def job(status: dict[str, Any] | None, **metadata: Any) -> TuningJobView:
    return TuningJobView.of({"metadata": {**METADATA, **metadata}, "spec": SPEC, "status": status})


def stalled(reason: str, message: str) -> dict[str, Any]:
    status = training(0)
    return {**status, "conditions": [*status["conditions"], condition("Stalled", "True", reason, message)]}


@pytest.mark.parametrize(
    ("status", "want"),
    [
        (
            None,
            "faq was created 5 min ago, and no operator has reconciled this TuningJob yet. Is the operator installed",
        ),
        (
            FAILED,
            "faq has failed, for 5 min: DatasetInvalid: datasets/faq.json, row 3: output is empty. It stays as it is",
        ),
        (
            SUCCEEDED,
            "faq has succeeded: the adapter is in models/ft_sft_tiny_1_abcdef on the claim tuning, and on 2 "
            "held-out rows its loss is 1.5 where the base has 3. Its report: kubectl tuning report faq -n team.",
        ),
        (
            training(50, loss=1.25),
            "faq is Training (step 50 of 100, loss 1.25, about 1:00 left). The trainer runs. That is so, for 5 min. "
            "Nothing is wrong; watch it with kubectl tuning watch faq -n team.",
        ),
        (
            {
                **training(0),
                "phase": "Fetching",
                "progress": {
                    "percent": 25,
                    "bytes": 1_000_000_000,
                    "totalBytes": 4_000_000_000,
                    "bytesPerSecond": 5e7,
                    "remainingSeconds": 60,
                },
            },
            "faq is Fetching (1.0 of 4.0 GB at 50.0 MB/s, about 1:00 left). The trainer runs.",
        ),
        (
            stalled("Unschedulable", "no node has a free GPU; wait, or add nodes"),
            "faq is Training. It makes no progress, for 5 min: Unschedulable: no node has a free GPU; "
            "wait, or add nodes. "
            "It continues by itself once that is put right",
        ),
        (
            {"phase": "Suspended", "conditions": [condition("Suspended", "True", "Suspended")]},
            "faq is Suspended. Nothing of it runs, since its spec suspends it. Resume it: kubectl patch tj faq -n team "
            """--type merge -p '{"spec": {"suspend": false}}'""",
        ),
        (
            {"phase": "Queued", "conditions": [condition("Reconciling", "True", "Queued", "Job faq-train waits")]},
            "faq is Queued. Job faq-train waits. That is so, for 5 min.",
        ),
    ],
    ids=["unseen", "failed", "succeeded", "training", "fetching", "stalled", "suspended", "queued"],
)
def test_a_job(status: dict[str, Any] | None, want: str) -> None:
    assert explain_job(job(status), NOW).startswith(want)


def test_a_new_job_and_a_changed_one() -> None:
    assert "just now" in explain_job(job(None, creationTimestamp="2026-11-29T08:04:55Z"), NOW)
    changed = job({**training(1), "observedGeneration": 1}, generation=2)
    assert explain_job(changed, NOW).endswith("The spec was changed since; the operator has not reconciled it yet.")


def test_a_service() -> None:
    spec = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}, "replicas": 2}

    def service(status: dict[str, Any] | None) -> InferenceServiceView:
        return InferenceServiceView.of({"metadata": METADATA, "spec": spec, "status": status})

    assert "no operator has reconciled this InferenceService" in explain_service(service(None), NOW)
    ready = {"readyReplicas": 2, "url": "http://faq.team.svc", "conditions": [condition("Ready", "True", "Ready")]}
    assert explain_service(service(ready), NOW) == (
        "faq is Ready, for 5 min: 2 of 2 replicas answer, under http://faq.team.svc."
    )
    base = {"percent": 40, "bytes": 4 * 10**9, "totalBytes": 10**10, "bytesPerSecond": 5e7, "remainingSeconds": 120}
    fetching = {"progress": base, "conditions": [condition("Ready", "False", "Fetching", "the base is being fetched")]}
    assert explain_service(service(fetching), NOW) == (
        "faq is not Ready, for 5 min, 0 of 2 replicas answer: Fetching: the base is being fetched. Fetched by now: "
        "4.0 of 10.0 GB at 50.0 MB/s, about 2:00 left. It gets ready by itself."
    )
    bad = {
        "readyReplicas": 1,
        "adapters": [
            {"modelId": "ft_a", "effective": "False", "reason": "NoEffect", "message": "it changes nothing"},
            {"tuningJob": "later", "reason": "WaitingForTuningJob", "message": "TuningJob later has not succeeded yet"},
        ],
        "conditions": [
            condition("Ready", "False", "NoEffect", "ft_a: it changes nothing"),
            condition("Stalled", "True", "Unschedulable", "no node has a free GPU"),
        ],
    }
    assert explain_service(service(bad), NOW) == (
        "faq is not Ready, for 5 min, 1 of 2 replicas answer: NoEffect: ft_a: it changes nothing. What is in the way: "
        "Unschedulable: no node has a free GPU. It gets ready by itself once that is put right. The adapter of "
        "TuningJob later: WaitingForTuningJob: TuningJob later has not succeeded yet."
    )
