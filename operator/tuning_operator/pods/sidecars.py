"""Containers that others add to our pods: a mesh's proxy that outlives the work, or one that fails or cannot start.

A Job ends when all containers of its pod have ended. A proxy that is never ended would keep it open for ever, so after
SIDECAR_SECONDS the result is taken from the container that did the work: its termination message is there.
"""

from __future__ import annotations

from datetime import datetime

from llm_tuning.api.conditions import Reason
from llm_tuning.errors import EXIT_INPUT
from tuning_operator.core.constants import INIT_SECONDS, SIDECAR_SECONDS, STUCK_SECONDS, UNREADY_SECONDS
from tuning_operator.pods.observed import IMAGE_TROUBLES, STARTING, Pod, Raw, read_time
from tuning_operator.pods.trouble import Trouble

REMEDY = "disable or mend what adds it to pods of this namespace (a service mesh, an admission webhook or policy)"


def sidecar_due(pod: Pod, now: datetime) -> float | None:
    """Return in how many seconds an added container is to be judged again (no watch delivers that); None: no need."""
    outlived = pod.ended_at if pod.sidecars else None
    since = outlived or _started(pod.holding)
    if since is None:
        return None
    seconds = (now - since).total_seconds()
    moments = (STUCK_SECONDS, SIDECAR_SECONDS) if outlived else (INIT_SECONDS,)
    return next((due - seconds for due in moments if seconds < due), None)


def is_outlived(pod: Pod, now: datetime, seconds: float = SIDECAR_SECONDS) -> bool:
    """Return whether the pod's work ended `seconds` ago or earlier while a sidecar still runs."""
    since = pod.ended_at if pod.sidecars else None
    return since is not None and (now - since).total_seconds() >= seconds


def find_outliving_sidecar(pod: Pod, now: datetime) -> Trouble | None:
    """Diagnose a container that keeps the pod open though its work has ended."""
    if not is_outlived(pod, now, STUCK_SECONDS):
        return None
    names = ", ".join(pod.sidecars)
    if pod.exit_code in (0, EXIT_INPUT):
        then = f"after {SIDECAR_SECONDS:.0f} s the result is taken and the Job deleted"
    else:
        then = f"no further attempt begins before that: `kubectl delete pod {pod.name}` ends it"
    return Trouble(
        Reason.SIDECAR_RUNNING,
        f"container {names} of pod {pod.name} still runs, ours ({pod.own[0]}) has ended with exit code "
        f"{pod.exit_code}; {then}. Inject it as a native sidecar, which ends with the pod, or {REMEDY}",
    )


def find_failing_sidecar(pod: Pod) -> Trouble | None:
    """Diagnose an added container that has failed in the pod or cannot start."""
    if pod.waiting_container not in ("", *pod.own) and pod.waiting.get("reason") not in STARTING:
        return find_waiting_sidecar(pod)
    status = pod.failed_sidecar
    if status is None:
        return None
    ended = status["state"]["terminated"]
    return Trouble(Reason.SIDECAR_FAILING, _added(pod, status["name"], f"has ended with exit code {ended['exitCode']}"))


def find_holding_sidecar(pod: Pod, now: datetime) -> Trouble | None:
    """Diagnose an added init container that runs and keeps the operator's containers from starting."""
    started = _started(pod.holding)
    if started is None or (now - started).total_seconds() < INIT_SECONDS:
        return None
    what = "runs, and ours wait until it has ended or, as a native sidecar, has started"
    return Trouble(Reason.SIDECAR_FAILING, _added(pod, pod.holding["name"], what))


def find_unready_sidecar(pod: Pod, now: datetime) -> Trouble | None:
    """Diagnose an added container that keeps the pod from being ready though all of the operator's are."""
    if not all(pod.status_of(name).get("ready") for name in pod.own):
        return None
    for status in pod.added:
        started = _started(status)
        if started and not status.get("ready") and (now - started).total_seconds() >= UNREADY_SECONDS:
            return Trouble(Reason.SIDECAR_FAILING, _added(pod, status["name"], "is not ready, ours are"))
    return None


def find_waiting_sidecar(pod: Pod) -> Trouble:
    """Diagnose why an added container keeps the pod from starting."""
    reason, name = str(pod.waiting.get("reason")), pod.waiting_container
    if reason in IMAGE_TROUBLES:
        what = f"has image {pod.waiting_image}, which cannot be pulled"
        return Trouble(Reason.IMAGE_PULL_FAILED, _added(pod, name, what))
    message = " ".join(str(pod.waiting.get("message", "")).split())[:300]
    what = f"does not start ({reason}{': ' + message if message else ''})"
    return Trouble(Reason.SIDECAR_FAILING, _added(pod, name, what))


def _started(status: Raw) -> datetime | None:
    started = ((status.get("state") or {}).get("running") or {}).get("startedAt")
    return read_time(started) if started else None


def _added(pod: Pod, name: str, what: str) -> str:
    return (
        f"container {name} of pod {pod.name} is not the operator's and {what}; see `kubectl logs {pod.name} -c {name}` "
        f"and {REMEDY}"
    )
