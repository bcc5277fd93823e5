"""The bar on a terminal: where it is, and what stalls it above the bar, once."""

from __future__ import annotations

import io
from typing import Any

import pytest

from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.client.waiting import BarWatcher, LineWatcher, NoWatcher, watcher_for
from tests.unit.llm_tuning.client.conftest import SPEC, SUCCEEDED, condition, training

METADATA = {"name": "faq", "namespace": "team", "uid": "u"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def job(status: dict[str, Any]) -> TuningJobView:
    return TuningJobView.of({"metadata": METADATA, "spec": SPEC, "status": status})


def test_the_stream_decides_what_is_shown() -> None:
    assert isinstance(watcher_for(Terminal()), BarWatcher)
    assert isinstance(watcher_for(io.StringIO()), LineWatcher)
    assert isinstance(watcher_for(False), NoWatcher)


def test_a_bar_with_its_numbers_and_the_trouble_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    watcher = watcher_for(terminal)
    watcher.show(job(training(0)))
    stuck = training(0)
    stuck["conditions"].append(condition("Stalled", "True", "QuotaExceeded", "a [quota] forbids it"))
    for _ in range(3):
        watcher.show(job(stuck))
    watcher.show(job(training(50, loss=1.25)))
    watcher.show(job(SUCCEEDED))
    watcher.close()
    said = terminal.getvalue()
    assert said.count("QuotaExceeded: a [quota] forbids it") == 1
    assert "faq Training (QuotaExceeded)" in said
    assert "50/100  loss 1.25  1:00 left" in said
    assert "faq Succeeded" in said


def test_a_service_has_its_replicas_for_steps() -> None:
    spec = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}, "replicas": 2}
    status = {"readyReplicas": 1, "conditions": [condition("Ready", "False", "Starting", "1 of 2 answers")]}
    service = InferenceServiceView.of({"metadata": METADATA, "spec": spec, "status": status})
    now = service.snapshot()
    assert (now.stage, now.step, now.total_steps, now.done) == ("faq Starting", 1, 2, False)
    fetching = {
        "progress": {"percent": 40, "bytes": 4, "totalBytes": 10, "bytesPerSecond": 2.0, "remainingSeconds": 3},
        "conditions": [condition("Ready", "False", "Fetching", "the base is being fetched")],
    }
    now = InferenceServiceView.of({"metadata": METADATA, "spec": spec, "status": fetching}).snapshot()
    assert (now.bytes, now.total_bytes, now.bytes_per_second, now.remaining_seconds) == (4, 10, 2.0, 3)
    assert now.percent == 40
    stream = io.StringIO()
    watcher = watcher_for(stream)
    for _ in range(2):
        watcher.show(service)
    assert stream.getvalue() == "InferenceService faq: not Ready, Starting: 1 of 2 answers\n"
