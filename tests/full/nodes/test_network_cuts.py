"""Pods of one run in networks of their own, which are cut and joined: no packet tells anybody of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.node_networks import Networks, networks
from tests.support.node_pods import descendants, ends, steps_done, wait_for
from tests.support.pod_process import Claim

PORT = 29500
LONG = {"batchSize": 2, "epochs": 1000, "saveSteps": 5}
A_MINUTE = 60
AGREED = 30
"""Seconds that the network may be silent."""

Begin = Callable[[], list[subprocess.Popen[str]]]


@pytest.fixture
def network() -> Iterator[Networks]:
    with networks(2) as made:
        yield made


@pytest.fixture
def pods(claim: Claim) -> list[Claim]:
    """The claim as each of two pods has it: the same folder, and a termination message of its own."""
    return [claim, Claim(claim.root, log="termination-log-1")]


@pytest.fixture
def begin(pods: list[Claim], network: Networks) -> Iterator[Begin]:
    """`begin()` starts both pods and returns once they have done some steps more than before."""
    started = []

    def begin() -> list[subprocess.Popen[str]]:
        before = steps_done(pods[0])
        for index, address in enumerate(network.addresses):
            variables = {"JOB_COMPLETION_INDEX": str(index), "LLM_TUNING_ADDRESS": address}
            variables["GLOO_SOCKET_IFNAME"] = "eth0"  # the host's name leads to loopback here, to its address in a pod
            nodes = {"hosts": network.addresses, "port": PORT}
            command = network.command(index)
            given = {"nodes": nodes, "environment": variables, "before": command, "training": LONG}
            started.append(pods[index].start("train", **given))
        wait_for("steps", lambda: steps_done(pods[0]) > before + 5, started[-2:])
        return started[-2:]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ranks_of(processes: list[subprocess.Popen[str]]) -> list[int]:
    return [rank for process in processes for rank in descendants(process.pid)]


def goes_on_from_its_checkpoint(pods: list[Claim], begin: Begin) -> None:
    saved = max(int(path.name.rpartition("-")[2]) for path in pods[0].models.glob(".work/m/checkpoints/checkpoint-*"))
    processes = begin()
    for process in processes:
        process.terminate()
    assert f"resumed from step {saved} (checkpoint-{saved})" in ends(pods, processes)[0].log
    assert steps_done(pods[0]) > saved


def test_a_cut_ends_both_sides_within_a_minute_and_they_go_on_once_it_is_mended(
    pods: list[Claim], network: Networks, begin: Begin, capsys: pytest.CaptureFixture[str]
) -> None:
    processes = begin()
    ranks = ranks_of(processes)
    assert len(ranks) == 2
    network.cut(1)
    since = time.monotonic()
    for index, ended in enumerate(ends(pods, processes)):
        other = 1 - index
        assert (ended.code, ended.result["reason"]) == (75, "NodeLost"), ended.log
        said = f"rank {other} of 2 on node {other} ({network.addresses[other]}) was not heard of for 30 s: its pod was"
        assert ended.result["message"].startswith(said)
    seconds = time.monotonic() - since
    with capsys.disabled():
        print(f"\ncut: both ended after {seconds:.1f} s")
    assert AGREED <= seconds < A_MINUTE
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]
    network.join(1)
    goes_on_from_its_checkpoint(pods, begin)


@pytest.mark.parametrize("blocked", [0, 1])
def test_connections_of_the_ranks_that_go_silent_alone_end_both_sides_within_a_minute(
    pods: list[Claim], network: Networks, begin: Begin, blocked: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store's port stays open: both nodes hear of each other all the time."""
    processes = begin()
    ranks = ranks_of(processes)
    network.drop_all_but(blocked, PORT)
    since = time.monotonic()
    both = ends(pods, processes)
    seconds = time.monotonic() - since
    for ended in both:
        assert (ended.code, ended.result["reason"]) == (75, "NodeLost"), ended.log
        one, other = (f"rank {rank} of 2 on node {rank} ({address})" for rank, address in enumerate(network.addresses))
        said = (
            "{} has acknowledged nothing that {} has sent it for 30 s, though both are alive: the network between them "
            f"is cut, or lets nothing but port {PORT} through"
        )
        assert ended.result["message"] in (said.format(one, other), said.format(other, one))
    with capsys.disabled():
        print(f"\nconnections alone: both ended after {seconds:.1f} s: {both[0].result['message']}")
    assert AGREED <= seconds < A_MINUTE
    assert not [rank for rank in ranks if Path(f"/proc/{rank}").exists()]
    network.drop_nothing(blocked)
    goes_on_from_its_checkpoint(pods, begin)


def test_a_cut_of_some_seconds_is_made_up_for(pods: list[Claim], network: Networks, begin: Begin) -> None:
    processes = begin()
    network.cut(1)
    time.sleep(12)  # what is tested: a cut of so long
    before = steps_done(pods[0])
    network.join(1)
    wait_for("steps after it", lambda: steps_done(pods[0]) > before + 5, processes)
    for process in processes:
        process.terminate()
    assert [ended.result["reason"] for ended in ends(pods, processes)] == ["Stopped", "Stopped"]
