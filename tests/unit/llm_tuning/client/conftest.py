"""A server of the API's answers, a client that knows it, and the shapes of a TuningJob's life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from llm_tuning.client import AsyncTuningClient, api
from tests.support.fake_api_server import TIME, FakeApiServer, Raw

SPEC: Raw = {
    "mode": "sft",
    "model": {"path": "base/tiny"},
    "dataset": {"path": "datasets/faq.json"},
    "volume": {"claimName": "tuning"},
}


def condition(kind: str, status: str, reason: str, message: str = "") -> Raw:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": 1,
        "lastTransitionTime": TIME,
    }


def training(step: int, total: int = 100, loss: float | None = None, **further: Any) -> Raw:
    """The status while it trains."""
    progress = {"percent": step * 100 // total, "step": step, "totalSteps": total, "loss": loss, "remainingSeconds": 60}
    progress = {key: value for key, value in progress.items() if value is not None}
    conditions = [
        condition("Reconciling", "True", "Training", "the trainer runs"),
        condition("Finished", "False", "Running"),
    ]
    return {"phase": "Training", "progress": progress, "conditions": conditions, **further}


SUCCEEDED: Raw = {
    "phase": "Succeeded",
    "modelId": "ft_sft_tiny_1_abcdef",
    "adapterPath": "models/ft_sft_tiny_1_abcdef",
    "progress": {"percent": 100, "step": 100, "totalSteps": 100, "loss": 0.1},
    "evaluation": {"heldOutRows": 2, "baseLoss": 3.0, "tunedLoss": 1.5},
    "conditions": [condition("Succeeded", "True", "Succeeded"), condition("Finished", "True", "Finished")],
}
FAILED: Raw = {
    "phase": "Failed",
    "conditions": [
        condition("Succeeded", "False", "DatasetInvalid", "datasets/faq.json, row 3: output is empty"),
        condition("Finished", "True", "Finished"),
    ],
}


@pytest.fixture
async def server() -> AsyncIterator[FakeApiServer]:
    """Listening."""
    made = FakeApiServer()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def client(server: FakeApiServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncTuningClient]:
    """Of that server, and in no mood to pause."""
    monkeypatch.setattr(api, "PAUSES", (0.01, 0.05))
    async with AsyncTuningClient(connection=server.connection) as made:
        yield made
