"""An operator whose watches are cut or late, that is paused, and whose API server or kubelet goes and comes back."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from devcluster.cluster import Cluster
from tests.cluster.test_crash_safety import JOB, End, _answers, case, node, undisturbed
from tests.support.operator_process import OperatorProcess
from tests.support.tuning_namespace import tuning_job, wait_until

pytestmark = [pytest.mark.timeout(900)]

__all__ = ["node", "undisturbed"]  # fixtures of the tests below


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
