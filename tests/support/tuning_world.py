"""A world with Jobs and pods that goes its way while the operator is killed, deaf, late and told twice.

The operator is the real reconciler, cache and queue on `memory_cluster`; the Job controller, the kubelet, the garbage
collector and Kueue take a step at a time, in an order that a seed decides.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from llm_tuning.pod.roles import ROLES
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_objects import CHECKED, FETCHED, SETTINGS, TRAINED, Raw, after, make_tuning_job
from tuning_operator.core.cache import JOBS, KINDS, NETWORK_POLICIES, PODS, SERVICES, TUNING_JOBS, Cache
from tuning_operator.core.conditions import timestamp
from tuning_operator.core.constants import LABEL_INDEX, LABEL_ROLE, QUEUE_LABEL, RESYNC_SECONDS
from tuning_operator.core.metrics import Metrics
from tuning_operator.core.queue import WorkQueue
from tuning_operator.pods import reporting
from tuning_operator.tuning_job.reconciler import TuningJobReconciler

NAME = "faq"
OK, LOST = "ok", "message lost"
"""Ends of a pod; the others are exit codes and OOM."""
OOM, NO_GPU, NO_ROOM, HANG = "OOM", "no GPU", "no room", "hang"
CODES = {OOM: 137, NO_GPU: 75, NO_ROOM: 75}
SIDECAR = "aaa-proxy"


class Killed(BaseException):
    """The process is gone at this moment."""


@dataclass
class World:
    """The clock, the Job controller, the kubelet, the garbage collector, and the user."""

    rng: random.Random
    plan: dict[str, list[str]]
    """How pods of a role end, one after the other; the last for all further ones."""
    cluster: MemoryCluster = field(default_factory=MemoryCluster)
    seconds: float = 0.0
    trained: bool = False
    """Whether the claim has the adapter: a trainer that is started again finds it and ends well at once."""
    ended: dict[str, int] = field(default_factory=dict)
    sidecar: bool = False
    """Whether a container that never ends is injected into each pod."""
    pods: int = 0

    def __post_init__(self) -> None:
        self.cluster.now = self.now

    def now(self) -> datetime:
        return after(int(self.seconds))

    def clock(self) -> float:
        return self.seconds

    # --- Kubernetes -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Time passes, and each of the machines does at most one thing to each object."""
        self.seconds += self.rng.uniform(0.2, 4.0)
        self._collect_garbage()
        for job in self.all(JOBS):
            self._control(job)
        for pod in self.all(PODS):
            if self.rng.random() < 0.6:
                self._run(pod)
        self.check()

    def all(self, kind: str) -> list[Raw]:
        return [self.cluster.get(kind, name) or {} for _, name in list(self.cluster.objects[kind])]

    def pods_of(self, job: Raw) -> list[Raw]:
        uid = job["metadata"]["uid"]
        return [pod for pod in self.all(PODS) if pod["metadata"]["ownerReferences"][0]["uid"] == uid]

    def _collect_garbage(self) -> None:
        uids = {raw["metadata"]["uid"] for kind in (TUNING_JOBS, JOBS) for raw in self.all(kind)}
        for kind in (JOBS, NETWORK_POLICIES, SERVICES):
            for owned in self.all(kind):
                if owned["metadata"]["ownerReferences"][0]["uid"] not in uids:
                    self.cluster.remove(kind, "team", owned["metadata"]["name"])
        for pod in self.all(PODS):
            if pod["metadata"]["ownerReferences"][0]["uid"] not in uids:
                self.delete_pod(pod)

    def _control(self, job: Raw) -> None:
        """The Job controller. A pod is counted before it may go."""
        pods = self.pods_of(job)
        if "deletionTimestamp" in job["metadata"]:
            for pod in pods:
                self.delete_pod(pod)
            if not self.pods_of(job):
                self.cluster.remove(JOBS, "team", job["metadata"]["name"])
            return
        status = job["status"]
        if status.get("conditions"):
            return
        if self._queued(job):
            for pod in pods:
                if not has_ended(pod):
                    self.delete_pod(pod)
        counted = status.setdefault("counted", [])  # stands for the finalizer of each pod
        for pod in pods:
            if pod["status"]["phase"] in ("Failed", "Succeeded") and pod["metadata"]["uid"] not in counted:
                counted.append(pod["metadata"]["uid"])
                key = pod["status"]["phase"].lower()
                status[key] = status.get(key, 0) + 1
                if exit_code(pod) == 64:
                    self._end(status, "Failed", "PodFailurePolicy")
        nodes = job["spec"]["completions"]
        if nodes > 1:
            status["active"] = sum(not has_ended(pod) and "deletionTimestamp" not in pod["metadata"] for pod in pods)
        if status.get("succeeded", 0) >= nodes:
            self._end(status, "Complete", "CompletionsReached")
        elif status.get("failed", 0) > job["spec"]["backoffLimit"]:
            alive = [pod for pod in pods if not has_ended(pod)]
            for pod in alive:
                self.delete_pod(pod)
            if not alive:
                self._end(status, "Failed", "BackoffLimitExceeded")
        elif job["spec"].get("suspend"):
            pass
        elif not status.get("conditions") and nodes == 1 and all(has_ended(pod) for pod in pods):
            if self.rng.random() < 0.7:
                self._start_pod(job)
        elif not status.get("conditions") and nodes > 1:
            there = {pod["metadata"]["labels"][LABEL_INDEX] for pod in pods if pod["status"]["phase"] != "Failed"}
            missing = [str(index) for index in range(nodes) if str(index) not in there]
            if missing and self.rng.random() < 0.7:
                self._start_pod(job, {LABEL_INDEX: missing[0]})
        self.cluster.change(JOBS, job)

    def _queued(self, job: Raw) -> bool:
        """Kueue: it holds back what has its label, lets it in, and may take that back for a while."""
        if QUEUE_LABEL not in job["metadata"]["labels"]:
            return False
        admitted = job["metadata"].setdefault("annotations", {})
        if "admitted" not in admitted:
            job["spec"]["suspend"] = True
        if self.rng.random() < 0.3:
            job["spec"]["suspend"] = False
            admitted["admitted"] = "yes"
        elif self.rng.random() < 0.05 and self.seconds < 150:
            job["spec"]["suspend"] = True
        return bool(job["spec"]["suspend"])

    def _end(self, status: Raw, kind: str, reason: str) -> None:
        if not status.get("conditions"):
            time = timestamp(self.now())
            status["conditions"] = [{"type": kind, "status": "True", "reason": reason, "lastTransitionTime": time}]

    def _start_pod(self, job: Raw, labels: Mapping[str, str] = MappingProxyType({})) -> None:
        self.pods += 1
        metadata = job["metadata"]
        self.cluster.add(
            PODS,
            {
                "metadata": {
                    "name": f"{metadata['name']}-{self.pods:04}",
                    "namespace": "team",
                    "labels": {**job["spec"]["template"]["metadata"]["labels"], **labels},
                    "ownerReferences": [{"kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}],
                },
                "spec": {
                    "containers": [{"name": ROLES[job["metadata"]["labels"][LABEL_ROLE]].container, "image": "pod:1"}]
                },
                "status": {"phase": "Pending"},
            },
        )

    def _run(self, pod: Raw) -> None:
        """The kubelet."""
        status, role = pod["status"], pod["metadata"]["labels"][LABEL_ROLE]
        leaves = "deletionTimestamp" in pod["metadata"]
        if has_ended(pod):
            if leaves:
                self.cluster.remove(PODS, "team", pod["metadata"]["name"])
            return
        if leaves and self._is_held_open(pod):
            status["phase"] = "Failed"  # the sidecar is killed
            status["containerStatuses"] = [s for s in status["containerStatuses"] if s["name"] != SIDECAR]
            self.cluster.change(PODS, pod)
        elif leaves:
            self._terminate(pod, "75")  # a checkpoint, then the end; it takes no part of the plan
        elif self._is_held_open(pod):
            return
        elif status["phase"] == "Pending":
            status["phase"] = "Running"
            running = {"running": {"startedAt": timestamp(self.now())}}
            status["containerStatuses"] = [{"name": ROLES[role].container, "state": running}]
            self.cluster.change(PODS, pod)
        else:
            number = self.ended.get(role, 0)
            self.ended[role] = number + 1
            plan = self.plan.get(role, [OK])
            end = plan[min(number, len(plan) - 1)]
            if end != HANG:
                self._terminate(pod, OK if role == "train" and self.trained and end != LOST else end)

    def _terminate(self, pod: Raw, end: str) -> None:
        role = pod["metadata"]["labels"][LABEL_ROLE]
        good = end in (OK, LOST)
        if role == "report":
            good = self.trained and end != "64"
        elif good and role == "train":
            self.trained = True
        terminated: Raw = {"exitCode": 0 if good else CODES.get(end) or int(end if end.isdigit() else 64)}
        if good and end != LOST:
            terminated["message"] = json.dumps({"fetch": FETCHED, "check": CHECKED}.get(role, TRAINED))
        elif end == OOM:
            terminated["reason"] = "OOMKilled"
        elif end == NO_GPU:
            terminated["message"] = json.dumps({"ok": False, "reason": "GPUUnavailable", "message": "no CUDA"})
        elif end == NO_ROOM:
            terminated["message"] = json.dumps({"ok": False, "reason": "VolumeFull", "message": "no space is left"})
        elif end == "64":
            reason = "SourceNotFound" if role == "fetch" else "DatasetInvalid"
            terminated["message"] = json.dumps({"ok": False, "reason": reason, "message": "row 3: no prompt"})
        pod["status"]["phase"] = "Succeeded" if good else "Failed"
        terminated["finishedAt"] = timestamp(self.now())
        pod["status"]["containerStatuses"] = [{"name": ROLES[role].container, "state": {"terminated": terminated}}]
        if self.sidecar and "deletionTimestamp" not in pod["metadata"]:
            pod["status"]["phase"] = "Running"
            pod["status"]["containerStatuses"].insert(0, {"name": SIDECAR, "state": {"running": {}}})
        self.cluster.change(PODS, pod)

    def _is_held_open(self, pod: Raw) -> bool:
        """Whether the work has ended and a sidecar runs on."""
        return any(status["name"] == SIDECAR for status in pod["status"].get("containerStatuses", ()))

    # --- what people do ---------------------------------------------------------------------------------------------

    def delete_pod(self, pod: Raw) -> None:
        """Gracefully: it ends, and goes then."""
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = timestamp(self.now())
            self.cluster.change(PODS, pod)

    def vanish(self) -> None:
        """A pod that has ended, and was counted, is removed: by a node that goes, or by hand."""
        counted = {uid for job in self.all(JOBS) for uid in job["status"].get("counted", [])}
        gone = [pod for pod in self.all(PODS) if has_ended(pod) and pod["metadata"]["uid"] in counted]
        if gone:
            self.cluster.remove(PODS, "team", self.rng.choice(gone)["metadata"]["name"])

    def delete_a_job(self) -> None:
        """By hand: in the foreground, or at once with the pods still there."""
        jobs = self.all(JOBS)
        if not jobs:
            return
        job = self.rng.choice(jobs)
        if self.rng.random() < 0.5:
            self.cluster.remove(JOBS, "team", job["metadata"]["name"])
        elif "deletionTimestamp" not in job["metadata"]:
            job["metadata"]["deletionTimestamp"] = timestamp(self.now())
            self.cluster.change(JOBS, job)

    def suspend(self, value: bool) -> None:
        raw = self.cluster.get(TUNING_JOBS, NAME)
        if raw is not None and raw["spec"].get("suspend", False) != value:
            raw["spec"]["suspend"] = value
            raw["metadata"]["generation"] += 1
            self.cluster.change(TUNING_JOBS, raw)

    def wipe_status(self) -> None:
        raw = self.cluster.get(TUNING_JOBS, NAME)
        if raw is not None and raw.pop("status", None):
            self.cluster.change(TUNING_JOBS, raw)

    def remove_job(self, name: str) -> None:
        if self.cluster.get(JOBS, name) is not None:
            self.cluster.remove(JOBS, "team", name)

    def delete(self) -> None:
        if self.cluster.get(TUNING_JOBS, NAME) is not None:
            self.cluster.remove(TUNING_JOBS, "team", NAME)

    # --- what must always hold --------------------------------------------------------------------------------------

    def check(self) -> None:
        live = [
            pod for pod in self.all(PODS) if not has_ended(pod) and pod["metadata"]["labels"][LABEL_ROLE] == "train"
        ]
        generations = {pod["metadata"]["ownerReferences"][0]["uid"] for pod in live}
        places = [pod["metadata"]["labels"].get(LABEL_INDEX) for pod in live]
        assert len(generations) <= 1, f"{len(generations)} Jobs of trainers at once"
        assert len(set(places)) == len(places), f"{len(live)} trainers at once"
        raw = self.cluster.get(TUNING_JOBS, NAME)
        if raw is not None and "uri" in raw["spec"]["model"] and self.all(PODS):
            fences = sorted(policy["metadata"]["name"] for policy in self.all(NETWORK_POLICIES))
            assert fences == [f"{NAME}-fetch", f"{NAME}-offline"], "a pod beside no NetworkPolicy"

    def end(self) -> Raw:
        """The status without what differs from one run to another, and the names of the Jobs."""
        raw = self.cluster.get(TUNING_JOBS, NAME)
        status = dict((raw or {}).get("status") or {})
        conditions = [(c["type"], c["status"], c["reason"], c["message"]) for c in status.pop("conditions", [])]
        for time in ("startTime", "completionTime"):
            status[time] = time in status
        status.get("progress", {}).pop("lastUpdateTime", None)
        for chance in ("jobUid", "time"):
            status.get("attempts", {}).pop(chance, None)
        return {"conditions": without_names(conditions), "status": status, "jobs": sorted(self.job_names())}

    def job_names(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.all(JOBS)]


def without_names(conditions: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Messages without the numbers of pods: how many there were before depends on chance."""
    return [(*rest, text.split("; see `kubectl")[0]) for *rest, text in conditions]


def has_ended(pod: Raw) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def exit_code(pod: Raw) -> int:
    ended = [status["state"]["terminated"] for status in pod["status"]["containerStatuses"]]
    return int(ended[-1]["exitCode"])


@dataclass
class Faults:
    """What goes wrong between the operator and its API server: chances of each."""

    kill: float = 0.0
    lag: float = 0.0
    lose: float = 0.0
    double: float = 0.0
    kill_at: int | None = None
    """The one write before which the operator is killed, counted from 0."""
    interleave: float = 0.0
    """Of the world going on in the middle of a pass."""


class Operator:
    """One process after the other: worker, queue and store, on the same cluster."""

    def __init__(self, world: World, faults: Faults) -> None:
        self.world, self.faults = world, faults
        self.deaths = 0
        self.listed = 0.0
        world.cluster.hook = self.on_write

    async def start(self) -> None:
        world = self.world
        self.queue = WorkQueue(world.clock)
        self.store = Cache({TUNING_JOBS: self.queue.add})
        self.worker = TuningJobReconciler(world.cluster, self.store, self.queue, SETTINGS, Metrics(), "test", world.now)  # type: ignore[arg-type]
        await self.list()
        self.task = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def list(self) -> None:
        """At the start, and once a minute."""
        self.listed = self.world.seconds
        for kind in KINDS:
            items, version = await self.world.cluster.list_all(kind, None)
            self.store.apply_list(kind, items, version, None)
        for raw in self.store.all(TUNING_JOBS):
            self.queue.add((raw["metadata"]["namespace"], raw["metadata"]["name"]))

    def on_write(self, moment: str, write: str) -> None:
        if moment == "before" and self.faults.kill_at == len(self.world.cluster.writes):
            self.faults = Faults()
            raise Killed(f"{moment} {write}")
        if self.world.rng.random() < self.faults.interleave:
            self.world.step()
            self.deliver()
        if self.world.rng.random() < self.faults.kill:
            raise Killed(f"{moment} {write}")

    def deliver(self, *, everything: bool = False) -> None:
        """Some of what the watches have; one kind may be behind the others."""
        rng, faults = self.world.rng, self.faults
        for kind, waiting in self.world.cluster.watch.items():
            if not everything and rng.random() < faults.lag:
                continue
            while waiting:
                event, raw = waiting.popleft()
                if rng.random() < faults.lose:
                    continue
                self.store.apply_event(kind, event, raw)
                if rng.random() < faults.double:
                    self.store.apply_event(kind, event, raw)

    async def work(self) -> None:
        """All passes that are due, by as many processes as it takes."""
        if self.world.seconds - self.listed > RESYNC_SECONDS:
            await self.list()
        self.queue._wake.set()  # its timer is the real clock's
        quiet = 0
        for _ in range(2000):
            await asyncio.sleep(0)
            if self.task.done():
                assert isinstance(self.task.exception(), Killed), self.task.exception()
                self.deaths += 1
                await self.start()
            quiet = quiet + 1 if not len(self.queue) and not self.worker.busy_since else 0
            if quiet > 6:
                return
        raise AssertionError("the operator does not come to rest")


@contextmanager
def fake_time(world: World) -> Iterator[None]:
    """The worker's throttles, on the world's clock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "time", SimpleNamespace(monotonic=world.clock))
        yield


def finished(world: World) -> bool:
    raw = world.cluster.get(TUNING_JOBS, NAME) or {}
    return any(
        c["type"] == "Finished" and c["status"] == "True" for c in (raw.get("status") or {}).get("conditions", [])
    )


async def live(
    world: World, faults: Faults, *, act: Any = None, spec: Raw | None = None, steps: int = 1500
) -> Operator:
    """Apply the TuningJob and let the world go on until it has finished; then nothing may be written any more."""
    given = {"resources": {"gpus": 0}, "retries": 2, **(spec or {})}
    world.cluster.add(TUNING_JOBS, make_tuning_job(NAME, uid="uid-of-faq", **given))
    with fake_time(world):
        operator = Operator(world, faults)
        await operator.start()
        try:
            for number in range(steps):
                if act is not None:
                    act(world, number)
                operator.deliver()
                await operator.work()
                if finished(world) or world.cluster.get(TUNING_JOBS, NAME) is None:
                    break
                world.step()
            else:
                raise AssertionError(f"no end: {world.end()} {world.all(JOBS)}")
            await still(world, operator)
        finally:
            await operator.stop()
    return operator


async def still(world: World, operator: Operator) -> None:
    """After the end: a last list, then a restart, and not a single write but of what an Event was due."""
    operator.faults = Faults()
    before = json.dumps(world.cluster.get(TUNING_JOBS, NAME))
    writes = len(world.cluster.writes)
    world.seconds += RESYNC_SECONDS
    for _ in range(8):
        world.step()
        operator.deliver(everything=True)
        await operator.work()
    await operator.stop()
    await operator.start()
    await operator.work()
    assert world.cluster.writes[writes:] == []
    assert json.dumps(world.cluster.get(TUNING_JOBS, NAME)) == before
