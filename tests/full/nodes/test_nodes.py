"""Two pods that train one run, as two processes on loopback with a real gloo group: the same adapter, and one end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node_pods import descendants, ends, steps_done, wait_for
from tests.support.pod_process import Claim

TRAINING = {"batchSize": 2, "epochs": 2}
LONG = {"batchSize": 2, "epochs": 500}
A_MINUTE, SLOW = 60, 400

Start = Callable[..., subprocess.Popen[str]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def pods(claim: Claim) -> list[Claim]:
    """The claim as each of two pods has it: the same folder, and a termination message of its own."""
    return [claim, Claim(claim.root, log="termination-log-1")]


@pytest.fixture
def start(pods: list[Claim]) -> Iterator[Start]:
    """`start(index, **given)` starts one pod's program; what is left of it ends with the test."""
    port, started = free_port(), []

    def start(index: int, attempt: str = "first", **given: Any) -> subprocess.Popen[str]:
        variables = {
            "JOB_COMPLETION_INDEX": str(index),
            "LLM_TUNING_ADDRESS": "127.0.0.1",
            "LLM_TUNING_ATTEMPT": attempt,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        nodes = {"hosts": ["127.0.0.1", "127.0.0.1"], "port": port}
        started.append(pods[index].start("train", nodes=nodes, environment=variables, **given))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def listening(pid: int) -> set[str]:
    """Addresses on which the process listens, as /proc/net has them."""
    sockets = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}


def test_two_pods_with_a_rank_each_make_the_adapter_of_one_pod_with_two(pods: list[Claim], start: Start) -> None:
    processes = [start(1, training=TRAINING), start(0, training=TRAINING)]
    processes.reverse()
    wait_for("two ranks", lambda: all(descendants(p.pid) for p in processes), processes)
    for pid in [p.pid for p in processes] + [rank for p in processes for rank in descendants(p.pid)]:
        assert listening(pid) <= {"0100007F"}
    first, second = ends(pods, processes)
    assert (first.code, second.code) == (0, 0), first.log + second.log
    assert first.result["adapterPath"] == "models/m"
    assert (second.result["ok"], second.result["reason"]) == (True, "Trained")
    assert second.result["message"] == "rank 1 of 2 on node 1 (127.0.0.1): done; the pod of index 0 has the result"
    one = pods[0].end(pods[0].start("train", training=TRAINING, gpus=2, model_id="one"), seconds=SLOW)
    assert one.code == 0, one.log
    models = pods[0].models
    assert (models / "m/adapter_model.safetensors").read_bytes() == (
        models / "one/adapter_model.safetensors"
    ).read_bytes()
    hashes = [json.loads((models / name / "model.json").read_text())["config_hash"] for name in ("m", "one")]
    assert hashes[0] == hashes[1]

    again = [start(0, training=TRAINING), start(1, training=TRAINING)]
    assert [ended.code for ended in ends(pods, again)] == [0, 0]


@pytest.fixture
def begin(pods: list[Claim], start: Start) -> Callable[[], list[subprocess.Popen[str]]]:
    """`begin()` starts both pods and returns once they have done a step more than before."""

    def begin() -> list[subprocess.Popen[str]]:
        before = steps_done(pods[0])
        processes = [start(0, training=LONG), start(1, training=LONG)]
        wait_for("a step", lambda: steps_done(pods[0]) > before, processes)
        return processes

    return begin


def test_a_rank_that_is_killed_ends_both_pods_which_name_it(
    pods: list[Claim], begin: Callable[[], list[subprocess.Popen[str]]]
) -> None:
    processes = begin()
    os.kill(descendants(processes[1].pid)[0], signal.SIGKILL)
    since = time.monotonic()
    for ended in ends(pods, processes):
        assert ended.code == 1, ended.log
        assert "rank 1 of 2 on node 1 (127.0.0.1) was ended by SIGKILL" in ended.result["message"]
    assert time.monotonic() - since < A_MINUTE


@pytest.mark.parametrize(("killed", "how"), [(1, "was not heard of for 30 s"), (0, "has ended without a word")])
def test_a_pod_that_is_killed_whole_is_missed_by_the_other_within_a_minute(
    pods: list[Claim], begin: Callable[[], list[subprocess.Popen[str]]], killed: int, how: str
) -> None:
    processes = begin()
    processes[killed].kill()  # its rank goes with it, and nothing says farewell
    since, other = time.monotonic(), 1 - killed
    left = pods[other].end(processes[other], seconds=SLOW)
    assert (left.code, left.result["reason"]) == (75, "NodeLost"), left.log
    said = f"rank {killed} of 2 on node {killed} (127.0.0.1) {how}: its pod was ended or evicted, or the network"
    assert left.result["message"].startswith(said)
    assert time.monotonic() - since < A_MINUTE


def test_a_pod_that_is_asked_to_stop_stops_both_after_a_checkpoint_and_the_next_start_goes_on(
    pods: list[Claim], begin: Callable[[], list[subprocess.Popen[str]]]
) -> None:
    processes = begin()
    processes[1].terminate()
    for ended in ends(pods, processes):
        assert (ended.code, ended.result["reason"]) == (75, "Stopped"), ended.log
    stopped_at = steps_done(pods[0])
    assert (pods[0].models / f".work/m/checkpoints/checkpoint-{stopped_at}").is_dir()
    processes = begin()
    for process in processes:
        process.terminate()
    assert f"resumed from step {stopped_at} (checkpoint-{stopped_at})" in ends(pods, processes)[0].log
    assert steps_done(pods[0]) > stopped_at


@pytest.mark.parametrize("there", [0, 1])
def test_a_node_that_never_comes_is_named_within_a_minute(pods: list[Claim], start: Start, there: int) -> None:
    process = start(there, training=TRAINING)
    alone = pods[there].end(process, seconds=SLOW)
    assert (alone.code, alone.result["reason"]) == (75, "NodeMissing"), alone.log
    said = "has not come within 45 s" if there == 0 else "cannot be reached from node 1 (127.0.0.1) at port"
    assert f"rank {1 - there} of 2 on node {1 - there} (127.0.0.1) {said}" in alone.result["message"]


def test_pods_of_two_starts_do_not_join_though_one_name_leads_to_the_other(pods: list[Claim], start: Start) -> None:
    """As where a name server still has the address of a pod that ends."""
    processes = [start(0, "first", training=TRAINING), start(1, "second", training=TRAINING)]
    first, second = ends(pods, processes)
    assert (first.code, second.code) == (75, 75), first.log + second.log
    assert first.result["message"].startswith("rank 1 of 2 on node 1 (127.0.0.1) has not come within 45 s")
    assert "within 45 s: what answers there belongs to another start of this run" in second.result["message"]


def test_bad_input_of_node_0_ends_the_other_with_its_words(pods: list[Claim], start: Start) -> None:
    wrong = {"dataset": {"path": "datasets/none.jsonl"}}
    processes = [start(0, **wrong), start(1, **wrong)]
    first, second = ends(pods, processes)
    assert (first.code, first.result["reason"]) == (64, "DatasetNotFound"), first.log
    assert (second.code, second.result["reason"]) in ((75, "NodeLost"), (75, "NodeMissing")), second.log
