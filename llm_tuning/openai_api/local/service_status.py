"""The status of an InferenceService of this machine, in the words that the operator has for one in a cluster. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_tuning.agent.contract import AdapterReport, DesiredRoutes, DesiredTarget, Report
from llm_tuning.api.conditions import AdapterReason, ServiceConditionType, ServiceReason
from llm_tuning.openai_api.local.conditions import FALSE, TRUE, UNKNOWN, Conditions

Raw = dict[str, Any]
C = ServiceConditionType
R = ServiceReason
_UNSETTLED = (AdapterReason.ENGINE_DOWN, AdapterReason.LOADING, AdapterReason.PROVING, R.NO_REPORT)


@dataclass(frozen=True)
class Trouble:
    """Why nothing answers for an InferenceService."""

    reason: str
    message: str
    stalled: bool = False
    """It does not go on by itself."""


@dataclass(frozen=True)
class Found:
    """What is known of an InferenceService now."""

    desired: DesiredRoutes
    trouble: Trouble | None = None
    url: str | None = None
    """Of its agent, while one runs."""
    report: Report | None = None
    """The agent's."""


def service_status(raw: Mapping[str, Any], found: Found, now: str) -> Raw:
    """Return the whole status of the object `raw`."""
    conditions = Conditions(raw, now)
    adapters = [_adapter(target, found.report) for target in _targets(found.desired)]
    engine_up = found.report is not None and found.report.engine_up
    _say_adapters(conditions, adapters, engine_up=engine_up)
    trouble = found.trouble or _not_ready(adapters, found)
    if trouble is None:
        conditions.set(C.READY, TRUE, R.READY, "vLLM answers on every route")
        conditions.set(C.RECONCILING, FALSE, R.SETTLED)
    else:
        moving = not trouble.stalled and trouble.reason in (R.STARTING, *_UNSETTLED)
        conditions.set(C.READY, FALSE, trouble.reason, trouble.message)
        conditions.set(C.RECONCILING, TRUE if moving else FALSE, trouble.reason if moving else R.SETTLED)
    if trouble is not None and trouble.stalled:
        conditions.set(C.STALLED, TRUE, trouble.reason, trouble.message)
    else:
        conditions.set(C.STALLED, FALSE, R.NOT_STALLED)
    return {
        "observedGeneration": raw["metadata"].get("generation") or 0,
        **({"url": found.url} if found.url is not None else {}),
        "replicas": int(found.url is not None),
        "readyReplicas": int(found.report is not None and found.report.ready),
        "adapters": adapters,
        "conditions": conditions.listed(C),
    }


def _targets(desired: DesiredRoutes) -> list[DesiredTarget]:
    """Return each adapter that the routes want, once."""
    every = (target for route in desired.routes for target in route.targets)
    return list({(target.model_id, target.tuning_job): target for target in every}.values())


def _adapter(target: DesiredTarget, report: Report | None) -> Raw:
    known = {"modelId": target.model_id, "tuningJob": target.tuning_job}
    named = {key: value for key, value in known.items() if value is not None}
    if target.model_id is None:
        return {**named, "loadedReplicas": 0, "reason": target.reason, "message": target.message}
    told = _of(report, target.model_id)
    if told is None:
        told = AdapterReport(model_id=target.model_id, reason=R.NO_REPORT, message="vLLM does not run for it now")
    return {
        **named,
        "loadedReplicas": int(told.loaded),
        "effective": told.effective,
        "reason": told.reason,
        "message": told.message,
    }


def _of(report: Report | None, model_id: str) -> AdapterReport | None:
    adapters = report.adapters if report is not None else ()
    return next((adapter for adapter in adapters if adapter.model_id == model_id), None)


def _say_adapters(conditions: Conditions, adapters: Sequence[Raw], *, engine_up: bool) -> None:
    for kind, done in ((C.ADAPTERS_LOADED, R.LOADED), (C.ADAPTERS_EFFECTIVE, R.EFFECTIVE)):
        missing = [each for each in adapters if not _has(each, kind)]
        if not adapters:
            conditions.set(kind, TRUE, R.NO_ADAPTERS, "no route names an adapter")
        elif not missing:
            conditions.set(kind, TRUE, done, f"{len(adapters)} on vLLM")
        else:
            refused = kind == C.ADAPTERS_LOADED or missing[0].get("effective") == "False"
            status = FALSE if engine_up and refused else UNKNOWN
            conditions.set(kind, status, missing[0]["reason"], f"{_name(missing[0])}: {missing[0]['message']}")


def _has(adapter: Raw, kind: ServiceConditionType) -> bool:
    return bool(adapter["loadedReplicas"]) if kind == C.ADAPTERS_LOADED else adapter.get("effective") == "True"


def _not_ready(adapters: Sequence[Raw], found: Found) -> Trouble | None:
    """Return what of a vLLM that was started keeps the InferenceService from Ready; None for nothing."""
    report = found.report
    if report is None or not report.engine_up:
        return Trouble(R.STARTING, "vLLM starts")
    for adapter in adapters:
        if adapter.get("effective") == "False" or not adapter["loadedReplicas"] or adapter["reason"] in _UNSETTLED:
            return Trouble(adapter["reason"], f"{_name(adapter)}: {adapter['message']}")
    if report.revision != found.desired.revision:
        return Trouble(AdapterReason.LOADING, "vLLM does not serve the newest routes yet")
    return None if report.ready else Trouble(R.STARTING, "vLLM starts")


def _name(adapter: Raw) -> str:
    return str(adapter.get("modelId") or f"TuningJob {adapter.get('tuningJob')}")
