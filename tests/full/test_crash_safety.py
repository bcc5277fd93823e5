"""An operator whose watches are cut or late, that is paused, and whose API server or kubelet goes and comes back."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.cluster import Cluster
from tests.cluster.test_crash_safety import (
    JOB,
    Case,
    End,
    case,
    kill_in_each,
    shortened,
    undisturbed,
)
from tests.support.devcluster import load, own_cluster
from tests.support.operator_process import OperatorProcess
from tests.support.tuning_namespace import STAND_IN_IMAGE, tuning_job, wait_until

pytestmark = [pytest.mark.timeout(900)]

COMMIT = "5f" * 20
FROM_HUB = f"hf://owner/tiny@{COMMIT}"
PLACE = f"""
import json, shutil, sys
from pathlib import Path
folder = Path("/workspace/sources/hf/owner/tiny/{COMMIT}")
shutil.copytree("/workspace/base/tiny", folder)
record = dict(uri="hf://owner/tiny", commit="{COMMIT}", kind="model", name="tiny", files=dict())
(folder / "source.json").write_text(json.dumps(record))
"""
"""Puts the base where a fetch of FROM_HUB finds it whole: so no hub is asked."""

__all__ = ["undisturbed"]  # a fixture of the tests below


@pytest.fixture(scope="module")
def node() -> Iterator[Cluster]:
    """A devcluster of its own: its API server and kubelet are stopped, which others would not like."""
    with own_cluster("crash") as cluster:
        load(cluster, "operator", "stand-in")
        yield cluster


def test_killed_before_every_write_it_comes_to_the_same_end(
    node: Cluster, undisturbed: tuple[End, list[str]], tmp_path: Path
) -> None:
    """After each, and before the first, is in tests/cluster."""
    _, writes = undisturbed
    kill_in_each(node, [(number, "before") for number in range(1, len(writes))], undisturbed, tmp_path, run=Case.run)


def test_cut_watches(node: Cluster, undisturbed: tuple[End, list[str]], tmp_path: Path) -> None:
    with case(node, tmp_path) as running:
        stop = threading.Event()

        def cut() -> None:
            while not stop.wait(1.5):
                running.proxy.cut_watches()

        thread = threading.Thread(target=cut)
        thread.start()
        try:
            assert running.run() == undisturbed[0]
        finally:
            stop.set()
            thread.join()


def test_late_events(node: Cluster, undisturbed: tuple[End, list[str]], tmp_path: Path) -> None:
    with case(node, tmp_path) as running:
        running.proxy.watch_delay_seconds = 3.0
        assert running.run() == undisturbed[0]


def test_two_operators_one_paused_and_continued(
    node: Cluster, undisturbed: tuple[End, list[str]], tmp_path: Path
) -> None:
    with case(node, tmp_path) as running:
        second = OperatorProcess(running.operator.kubeconfig, running.namespace.name, tmp_path / "second.log")
        second.start()
        try:
            running.namespace.apply(tuning_job(JOB))
            wait_until(lambda: running.namespace.get("job", f"{JOB}-check") is not None, 30, "the check")
            running.operator.send(signal.SIGSTOP)
            second.wait_ready(seconds=60)
            running.namespace.wait(JOB, "Finished", seconds=150)
            running.operator.send(signal.SIGCONT)
            wait_until(lambda: not running.operator.running(), 30, "the end of the operator that lost its Lease")
            assert running.seen() == undisturbed[0]
        finally:
            second.end()


def test_the_api_server_restarts(node: Cluster, undisturbed: tuple[End, list[str]], tmp_path: Path) -> None:
    with case(node, tmp_path) as running:
        running.namespace.apply(tuning_job(JOB, stand_in="sleep=3"))
        wait_until(lambda: running.namespace.get("job", f"{JOB}-check") is not None, 30, "the check")
        node.end("kube-apiserver", signal.SIGKILL)
        time.sleep(3)
        node.start("kube-apiserver")
        wait_until(lambda: _answers(node), 60, "the API server")
        if not running.operator.running():  # its Lease was lost: its Deployment starts it again
            running.operator.start()
        assert running.end() == undisturbed[0]


def test_the_kubelet_stops_and_starts(node: Cluster, undisturbed: tuple[End, list[str]], tmp_path: Path) -> None:
    with case(node, tmp_path) as running:
        running.namespace.apply(tuning_job(JOB, stand_in="sleep=3"))
        wait_until(lambda: running.namespace.get("job", f"{JOB}-check") is not None, 30, "the check")
        node.end("kubelet", signal.SIGKILL)
        time.sleep(5)
        node.start("kubelet")
        assert running.end() == undisturbed[0]


def _run_from_hub(running: Case) -> End:
    """Run one whose base is named by URI, and is on the claim."""
    running.namespace.run("place", STAND_IN_IMAGE, "python", "-c", PLACE, seconds=300)
    job = tuning_job(JOB)
    job["spec"]["model"] = {"uri": FROM_HUB}
    running.namespace.apply(job)
    return running.end(seconds=400)


def test_killed_at_every_write_of_a_fetch_it_comes_to_the_same_end(node: Cluster, tmp_path: Path) -> None:
    with case(node, tmp_path / "undisturbed") as running:
        end = _run_from_hub(running)
        writes = [shortened(write) for write in running.proxy.writes]
    assert (end.phase, end.children) == ("Succeeded", (f"{JOB}-check", f"{JOB}-fetch", f"{JOB}-train"))
    print("writes:", json.dumps(writes))
    of_fetch = next(number for number, write in enumerate(writes) if f"{JOB}-check" in write)
    assert sum("networkpolicies" in write for write in writes[:of_fetch]) == 2
    cases = [(number, moment) for number in range(of_fetch + 1) for moment in ("before", "after")]
    kill_in_each(node, cases, (end, writes), tmp_path, run=_run_from_hub)


def _run_on_two_nodes(running: Case, stand_in: str = "") -> End:
    """Run one of two pods; no pods of two Jobs may live at the same time."""
    done, doubled = threading.Event(), []

    def watch() -> None:
        while not done.wait(0.5):
            pods = running.namespace.list("pods", "tuning.llmtuning.dev/role=train")
            alive = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
            if len({pod["metadata"]["ownerReferences"][0]["uid"] for pod in alive}) > 1:
                doubled.append([pod["metadata"]["name"] for pod in alive])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        running.namespace.apply(tuning_job(JOB, stand_in=stand_in, resources={"nodes": 2}))
        end = running.end(seconds=300)
    finally:
        done.set()
        watcher.join()
    assert not doubled, doubled
    attempts = (running.namespace.get("tuningjobs", JOB) or {})["status"].get("attempts") or {}
    assert attempts.get("failed", 0) == (1 if stand_in else 0), attempts  # counted once, however often it was seen
    for kind, name in (("service", f"{JOB}-train"), ("networkpolicy", f"{JOB}-nodes")):
        assert running.namespace.get(kind, name) is not None
    return end


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stand_in", ["", "flaky=2"])
def test_killed_at_every_write_of_two_nodes_it_comes_to_the_same_end(
    node: Cluster, tmp_path: Path, stand_in: str
) -> None:
    """Where both pods of the first Job fail there is a second one, and never the two at once."""

    def run(running: Case) -> End:
        return _run_on_two_nodes(running, stand_in)

    with case(node, tmp_path / "undisturbed") as running:
        end = run(running)
        writes = [shortened(write) for write in running.proxy.writes]
    print("writes:", json.dumps(writes))
    assert (end.phase, end.trainers, end.starts) == ("Succeeded", 2, 1)
    assert writes.count(f"POST jobs/{JOB}-train") == (2 if stand_in else 1)
    # Up to the first Job both chains write the same.
    first = writes.index(f"POST jobs/{JOB}-train") + 1 if stand_in else 0
    cases = [(number, moment) for number in range(first, len(writes)) for moment in ("before", "after")]
    # Two pods that change at once are one write or two.
    kill_in_each(node, cases, (end, writes), tmp_path, run=run, spare=3)


def _answers(node: Cluster) -> bool:
    try:
        return "ok" in node.kubectl("get", "--raw", "/readyz")
    except Exception:
        return False
