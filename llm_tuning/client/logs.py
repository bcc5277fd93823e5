"""The log of a TuningJob: the pods of the stage it is at (data check, then training), one after the other.

A stream that is cut continues after the last line that was seen, by the kubelet's own times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from llm_tuning.api.kube import LABEL_INDEX, LABEL_ROLE, LABEL_UID
from llm_tuning.client.api import PAUSES, Api, Query, Raw
from llm_tuning.client.errors import NotFound, Unavailable
from llm_tuning.client.objects import TuningJobView
from llm_tuning.errors import InputError, Problem
from llm_tuning.pod.roles import ROLES, TRAIN
from llm_tuning.progress.lines import read_line

FOLLOWED = tuple(role.name for role in ROLES.values() if role.is_followed)
LOOK_SECONDS = 2.0
"""Between two lists for the next pod."""
SILENT_SECONDS = 60.0
"""A followed log without a line for so long is opened again: a dead connection shows no other sign."""


@dataclass(frozen=True)
class LossPoint:
    """The loss that a trainer has logged at a step."""

    step: int
    loss: float


async def follow_logs(api: Api, jobs: str, name: str, *, follow: bool, rank: int = 0) -> AsyncGenerator[str, None]:
    """Yield lines of the pods of TuningJob `name` in the collection `jobs`; with `follow` until it has finished.

    It begins at the stage that runs now; of a training of several pods it reads the one that has `rank`. Raises
    NotFound if there is no such TuningJob at the start, InputError if it has no such rank.
    """
    job = TuningJobView.of(await api.call("GET", f"{jobs}/{name}"))
    index = _pod_of_rank(job, rank)
    stages: tuple[str, ...] = FOLLOWED if index == 0 else (TRAIN,)
    uid, seen = job.uid, set[str]()
    while True:
        pods = await pods_of(api, uid)
        if not seen and any(pod["metadata"]["labels"][LABEL_ROLE] == TRAIN for pod in pods):
            stages = (TRAIN,)
        for pod in pods:
            if pod["metadata"]["labels"][LABEL_ROLE] not in stages or pod["metadata"]["uid"] in seen:
                continue
            if _index_of(pod) != index:
                continue
            if not _has_started(pod) and not job.is_finished:
                break  # the ones after it are later tries
            seen.add(pod["metadata"]["uid"])
            async with aclosing(_pod_lines(api, pod, follow=follow)) as lines:
                async for line in lines:
                    yield line
        else:
            if not follow or job.is_finished:
                return
        if not follow:
            return
        await asyncio.sleep(LOOK_SECONDS)
        try:
            job = TuningJobView.of(await api.call("GET", f"{jobs}/{name}"))
        except NotFound:
            return
        if job.uid != uid:  # a namesake; the one that was asked for has gone
            return


def _pod_of_rank(job: TuningJobView, rank: int) -> int:
    """Return the index of the pod that has the rank: each has one for each of its GPUs."""
    resources = job.spec.resources
    each = max(1, resources.gpus)
    ranks = each * resources.nodes
    if not 0 <= rank < ranks:
        fix = "it has one" if ranks == 1 else f"its ranks are 0 to {ranks - 1}"
        raise InputError(Problem("rank", f"TuningJob {job.name} has no rank {rank}", fix))
    return rank // each


def _index_of(pod: Raw) -> int:
    return int(pod["metadata"]["labels"].get(LABEL_INDEX) or 0)


async def pods_of(api: Api, uid: str) -> list[Raw]:
    """List the pods that checked and trained, in the order in which they were made."""
    path = f"/api/v1/namespaces/{api.connection.namespace}/pods"
    selector = f"{LABEL_UID}={uid},{LABEL_ROLE} in ({','.join(FOLLOWED)})"
    pods: list[Raw] = (await api.call("GET", path, query={"labelSelector": selector}))["items"]
    return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))


async def read_losses(api: Api, uid: str) -> list[LossPoint]:
    """Read the loss curve from the trainers' logs: a point each ten seconds, none where the pods are gone."""
    lines: list[str] = []
    for pod in await pods_of(api, uid):
        if pod["metadata"]["labels"][LABEL_ROLE] == TRAIN and _has_started(pod):
            lines += [line async for line in _pod_lines(api, pod, follow=False)]
    return losses_in(lines)


def losses_in(lines: Sequence[str]) -> list[LossPoint]:
    """Collect the points among a trainer's lines; a resumed run's later points replace those of its lost steps."""
    found: dict[int, float] = {}
    for line in map(read_line, lines):
        if line is not None and line.loss is not None:
            found = {step: loss for step, loss in found.items() if step < line.step} | {line.step: line.loss}
    return [LossPoint(step, loss) for step, loss in sorted(found.items())]


def _state_of(pod: Raw) -> Raw:
    """Return the state of the container that does the pod's work; a mesh's proxy may stand beside it."""
    name = ROLES[pod["metadata"]["labels"][LABEL_ROLE]].container
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((status.get("state") or {} for status in statuses if status["name"] == name), {})


def _has_started(pod: Raw) -> bool:
    """Return whether there is a log."""
    return bool(_state_of(pod).keys() & {"running", "terminated"})


async def _pod_lines(api: Api, pod: Raw, *, follow: bool) -> AsyncGenerator[str, None]:
    container = ROLES[pod["metadata"]["labels"][LABEL_ROLE]].container
    path = f"/api/v1/namespaces/{api.connection.namespace}/pods/{pod['metadata']['name']}"
    last, lines_at_last, attempt = "", 0, 0
    while True:
        query: Query = {"timestamps": "true", "container": container} | ({"follow": "true"} if follow else {})
        query = {**query, "sinceTime": last} if last else query
        again, opened = lines_at_last, time.monotonic()  # what was seen of that moment comes once more
        try:
            async with aclosing(api.lines("GET", f"{path}/log", params=query, silent_seconds=SILENT_SECONDS)) as lines:
                async for line in lines:
                    written, _, text = line.partition(" ")
                    if last and _sortable(written) < _sortable(last):
                        continue
                    if written == last and again > 0:
                        again -= 1
                        continue
                    lines_at_last = lines_at_last + 1 if written == last else 1
                    last, attempt = written, 0
                    yield text
            if not follow or not await _is_running(api, path):
                return
            await asyncio.sleep(LOOK_SECONDS)  # a kubelet that restarts ends the stream, not the container
        except NotFound:  # the pod has gone, and its log with it
            return
        except Unavailable:
            if time.monotonic() - opened >= SILENT_SECONDS:  # nothing is wrong with a trainer that logs nothing
                attempt = 0
            if not follow or attempt >= len(PAUSES):
                raise
            await asyncio.sleep(PAUSES[attempt])
            attempt += 1


async def _is_running(api: Api, path: str) -> bool:
    try:
        return "running" in _state_of(await api.call("GET", path))
    except NotFound:
        return False


def _sortable(written: str) -> str:
    """Pad an RFC 3339 time to nine digits of a second: the kubelet leaves zeros at the end out."""
    whole, _, fraction = written.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}"
