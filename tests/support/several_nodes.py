"""A training of several pods as the operator sees it: builders, and what one reconcile wants."""

from __future__ import annotations

from typing import Any

from tests.support.desires import VALID
from tests.support.operator_objects import SETTINGS, Raw, after, make_job, make_observed, make_pod, make_tuning_job
from tuning_operator.core.desired import Desired
from tuning_operator.core.settings import Settings
from tuning_operator.tuning_job.desire import desire
from tuning_operator.tuning_job.nodes import build_nodes_policy, build_service

CRASH = {
    "ok": False,
    "reason": "UnexpectedError",
    "message": "RuntimeError: rank 3 of 4 on node 1 (faq-train-1) failed",
}
LOST = {"ok": False, "reason": "NodeLost", "message": "node 1 (faq-train-1) has ended: its ranks have failed"}
STOPPED = {"ok": False, "reason": "Stopped", "message": "stopped on request"}
FULL = {"ok": False, "reason": "VolumeFull", "message": "spec.volume.claimName: no space is left in models"}
REFUSED = {"ok": False, "reason": "DatasetInvalid", "message": "row 3: no prompt"}


def job(*, nodes: int = 2, gpus: int = 2, name: str = "faq", status: Raw | None = VALID, **spec: Any) -> Raw:
    return make_tuning_job(name, status=status, resources={"gpus": gpus, "nodes": nodes}, **spec)


def there(raw: Raw, settings: Settings = SETTINGS) -> dict[str, Any]:
    """The Service and the NetworkPolicy of a training of several pods, as they were applied."""
    observed = make_observed(raw)
    assert observed.spec is not None, observed.problems
    return {"headless": build_service(observed), "policies": [build_nodes_policy(observed, observed.spec, settings)]}


def wanted(raw: Raw, *, seconds: float = 70, settings: Settings = SETTINGS, **observed: Any) -> Desired:
    return desire(make_observed(raw, **{**there(raw), **observed}), settings, after(seconds))


def pods(first: Raw | None = None, second: Raw | None = None) -> dict[str, Any]:
    first = make_pod(number=1, index=0) if first is None else first
    second = make_pod(number=2, index=1) if second is None else second
    return {"jobs": [make_job(nodes=2)], "pods": [first, second]}


def failed(number: int, index: int, result: Raw, **given: Any) -> Raw:
    code = 64 if result is REFUSED else 75 if result in (LOST, STOPPED, FULL) else 1
    return make_pod(number=number, index=index, phase="Failed", exit_code=code, result=result, **given)


def attempts(raw: Raw, **given: Any) -> Raw:
    """`raw` with what its status holds of attempts."""
    return {**raw, "status": {**raw["status"], "attempts": given}}


def seen(raw: Raw, *states: str) -> Raw:
    """`raw` with what its status lists of pods on gpu-0, gpu-1..."""
    listed = [
        {
            "index": index,
            "ranks": f"{2 * index}-{2 * index + 1}",
            "pod": f"faq-train-{index + 1}",
            "node": f"gpu-{index}",
        }
        | {"state": state}
        for index, state in enumerate(states)
    ]
    return {**raw, "status": {**raw["status"], "nodes": listed}}


def states(desired: Desired) -> list[str]:
    assert desired.status is not None
    return [node["state"] for node in desired.status["nodes"]]
