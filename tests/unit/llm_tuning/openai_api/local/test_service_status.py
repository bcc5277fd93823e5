"""What is said of an InferenceService of this machine."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.agent.contract import AdapterReport, DesiredRoute, DesiredRoutes, DesiredTarget, Report
from llm_tuning.openai_api.local.service_status import Found, Trouble, service_status

RAW: dict[str, Any] = {"metadata": {"name": "a", "generation": 3}}
ROUTES = DesiredRoutes(routes=(DesiredRoute(name="faq", targets=(DesiredTarget(model_id="ft_a", weight=1),)),))
URL = "http://127.0.0.1:1"


def _told(found: Found) -> tuple[dict[str, tuple[str, str]], dict[str, Any]]:
    """Return each condition's status and reason, and the status as a whole."""
    status = service_status(RAW, found, "2026-12-01T10:00:00Z")
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}, status


def _report(adapter: AdapterReport | None = None, *, ready: bool = True, revision: str = ROUTES.revision) -> Report:
    adapters = (adapter,) if adapter is not None else ()
    return Report(revision=revision, engine_up=True, ready=ready, adapters=adapters)


GOOD = AdapterReport(model_id="ft_a", loaded=True, effective="True", settled=True, reason="Effective")


def test_it_is_ready_when_the_adapter_is_proven() -> None:
    conditions, status = _told(Found(ROUTES, url=URL, report=_report(GOOD)))
    assert conditions["Ready"] == ("True", "Ready")
    assert conditions["AdaptersEffective"][0] == conditions["AdaptersLoaded"][0] == "True"
    assert (status["observedGeneration"], status["url"], status["readyReplicas"]) == (3, URL, 1)


@pytest.mark.parametrize(
    ("report", "reason", "moves"),
    [
        (None, "Starting", "True"),
        (Report(), "Starting", "True"),
        (_report(AdapterReport(model_id="ft_a", reason="Loading")), "Loading", "True"),
        (_report(GOOD, revision="older"), "Loading", "True"),
        (_report(GOOD, ready=False), "Starting", "True"),
        (_report(AdapterReport(model_id="ft_a", reason="RankTooHigh", settled=True)), "RankTooHigh", "False"),
    ],
    ids=["no report", "engine down", "loading", "older routes", "not ready", "refused"],
)
def test_it_is_not_ready_while_something_is_missing(report: Report | None, reason: str, moves: str) -> None:
    conditions, _ = _told(Found(ROUTES, url=URL, report=report))
    assert conditions["Ready"] == ("False", reason)
    assert conditions["Reconciling"][0] == moves
    assert conditions["Stalled"][0] == "False"


def test_an_adapter_without_effect_is_said_so_though_it_is_loaded() -> None:
    adapter = AdapterReport(model_id="ft_a", loaded=True, effective="False", settled=True, reason="NoEffect")
    conditions, _ = _told(Found(ROUTES, url=URL, report=_report(adapter)))
    assert conditions["Ready"] == ("False", "NoEffect")
    assert (conditions["AdaptersLoaded"][0], conditions["AdaptersEffective"][0]) == ("True", "False")


def test_a_job_that_has_not_succeeded_is_named() -> None:
    waits = DesiredTarget(tuning_job="job", weight=1, reason="WaitingForTuningJob", message="TuningJob job has not yet")
    desired = DesiredRoutes(routes=(DesiredRoute(name="faq", targets=(waits,)),))
    conditions, status = _told(Found(desired, url=URL, report=_report(revision=desired.revision)))
    assert conditions["Ready"] == ("False", "WaitingForTuningJob")
    assert status["adapters"][0]["tuningJob"] == "job"


def test_what_does_not_go_on_by_itself_is_stalled() -> None:
    conditions, status = _told(Found(ROUTES, trouble=Trouble("EngineFailing", "it has ended", stalled=True)))
    assert conditions["Stalled"] == ("True", "EngineFailing")
    assert (conditions["Reconciling"][0], status["replicas"], "url" in status) == ("False", 0, False)
