"""The operator is killed before and after each of its API writes, and the end is the same as without.

An undisturbed run lists the writes. Each case then has a namespace and an operator of its own, on real pods with the
stand-in trainer. The operator runs as a process of this machine behind a proxy, which sees every write, so that it can
be killed at exactly that moment: before the API server has seen the write, and after it has done it. The operator that
comes next finds the same objects before a write as after the one before it: those cases are in tests/full.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Clients
from tests.support.api_proxy import ApiProxy, Write
from tests.support.operator_process import OperatorProcess
from tests.support.tuning_namespace import TuningNamespace, tuning_job, tuning_namespace, wait_until

pytestmark = [pytest.mark.timeout(900)]

AT_ONCE = 5
"""Cases at the same time: two cores run their pods and operators."""
QUIET_SECONDS = 3.0
JOB = "chain"


@dataclass(frozen=True)
class End:
    """What a run has come to, without what differs between any two runs."""

    conditions: tuple[tuple[str, str, str], ...]
    phase: str
    children: tuple[str, ...]
    trainers: int
    """Pods that trained: more than one, and a Job was made twice."""
    starts: int
    """Trainings that the stand-in's own log has."""


@dataclass
class Case:
    """One namespace with its proxy and operator."""

    namespace: TuningNamespace
    proxy: ApiProxy
    operator: OperatorProcess

    def run(self, **spec: Any) -> End:
        """Apply the TuningJob and wait for its end; checks that nothing more is written then."""
        self.namespace.apply(tuning_job(JOB, **spec))
        return self.end()

    def end(self, seconds: float = 150) -> End:
        self.namespace.wait(JOB, "Finished", seconds=seconds)
        wait_until(self.operator.running, 30, "the operator's restart")
        wait_until(lambda: self.operator.answers("readyz"), 60, "the operator")
        time.sleep(1)
        before = len(self.proxy.writes)
        time.sleep(QUIET_SECONDS)
        assert self.proxy.writes[before:] == [], "a finished TuningJob is written to"
        return self.seen()

    def seen(self) -> End:
        job = self.namespace.get("tuningjobs", JOB)
        assert job is not None
        jobs = self.namespace.list("jobs")
        trainers = self.namespace.list("pods", "tuning.llmtuning.dev/role=train")
        return End(
            conditions=tuple((c["type"], c["status"], c["reason"]) for c in job["status"]["conditions"]),
            phase=job["status"]["phase"],
            children=tuple(sorted(child["metadata"]["name"] for child in jobs)),
            trainers=len(trainers),
            starts=len({pod["metadata"]["ownerReferences"][0]["uid"] for pod in trainers}),
        )


@contextmanager
def case(cluster: Clients, folder: Path) -> Iterator[Case]:
    """A namespace with a filled claim, and an operator behind a proxy."""
    folder.mkdir(parents=True, exist_ok=True)
    with tuning_namespace(cluster, operator=False) as namespace, ApiProxy(cluster.kubeconfig) as proxy:
        config = proxy.kubeconfig(folder / "kubeconfig", namespace=namespace.name)
        operator = OperatorProcess(config, namespace.name, folder / "operator.log")
        operator.start()
        try:
            operator.wait_ready()
            yield Case(namespace, proxy, operator)
        finally:
            operator.send(signal.SIGCONT)
            operator.end(signal.SIGKILL)


def kill_at(running: Case, number: int, moment: str) -> Callable[[], bool]:
    """Kill the operator at that write, once, and start it again; returns whether it came to that."""
    killed = threading.Event()

    def on_write(write: Write, count: int, when: str) -> bool:
        if killed.is_set() or (count, when) != (number, moment):
            return False
        killed.set()
        running.operator.send(signal.SIGKILL)
        threading.Thread(target=restart).start()
        return True

    def restart() -> None:
        running.operator.end(signal.SIGKILL)
        running.operator.start()

    running.proxy.on_write = on_write
    return killed.is_set


@pytest.fixture(scope="module")
def node(cluster: Clients) -> Clients:
    """Where the cases run; tests/full has a node of its own, whose parts it stops."""
    return cluster


@pytest.fixture(scope="module")
def undisturbed(node: Clients, tmp_path_factory: pytest.TempPathFactory) -> tuple[End, list[str]]:
    """The end of a run that nothing disturbs, and its writes."""
    with case(node, tmp_path_factory.mktemp("undisturbed")) as running:
        end = running.run()
        return end, [shortened(write) for write in running.proxy.writes]


def shortened(write: Write) -> str:
    """Without generated parts."""
    return re.sub(r"\.[0-9a-f]{16}$", "", str(write))


def test_the_writes_of_a_life_are_few(undisturbed: tuple[End, list[str]]) -> None:
    end, writes = undisturbed
    print("writes:", json.dumps(writes))
    assert end.phase == "Succeeded"
    assert end.children == (f"{JOB}-check", f"{JOB}-train")
    assert (end.trainers, end.starts) == (1, 1)
    assert len(writes) <= 8


def test_killed_at_every_write_it_comes_to_the_same_end(
    node: Clients, undisturbed: tuple[End, list[str]], tmp_path: Path
) -> None:
    _, writes = undisturbed
    cases = [(0, "before"), *((number, "after") for number in range(len(writes)))]
    kill_in_each(node, cases, undisturbed, tmp_path, run=Case.run)


def kill_in_each(
    node: Clients,
    cases: Sequence[tuple[int, str]],
    undisturbed: tuple[End, list[str]],
    folder: Path,
    *,
    run: Callable[[Case], End],
    spare: int = 0,
) -> None:
    """Kill the operator at each write and moment, several at once: every end is the undisturbed one.

    A run may have up to `spare` writes fewer than that one, by how what happens in the cluster falls together.
    """
    end, writes = undisturbed

    def one(number: int, moment: str) -> str:
        with case(node, folder / f"{number}-{moment}") as running:
            was_killed = kill_at(running, number, moment)
            found = run(running)
            result = "equal" if found == end else f"{found} instead of {end}"
            if not was_killed() and number < len(writes) - spare:
                result = "never came to that write"
            print(f"killed {moment:>6} {writes[number]}: {result}", flush=True)
            return result

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(lambda at: one(*at), cases))
    assert set(results) == {"equal"}
