"""When a node of a run, or a rank, counts as there and as lost, and what a fault of its own watch is told as."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from llm_tuning.errors import EXIT_TRY_AGAIN, TryAgain
from llm_tuning.run import nodes
from llm_tuning.run.awake import AwakeClock
from llm_tuning.run.rank import RankFailure

HOST, SERVICE = "faq-train-1.faq-train", "faq-train"


@pytest.mark.parametrize(
    ("host", "service", "is_known"),
    [
        (None, None, True),
        (socket.EAI_NONAME, None, False),
        (socket.EAI_NONAME, socket.EAI_AGAIN, False),
        (socket.EAI_AGAIN, None, False),  # a server outside is asked last, and cannot be reached
        (socket.EAI_AGAIN, socket.EAI_AGAIN, True),  # no server answers: waited for as long as for a node
    ],
)
def test_a_pod_that_does_not_run_yet_is_not_known_where_servers_outside_are_not_reached(
    monkeypatch: pytest.MonkeyPatch, host: int | None, service: int | None, is_known: bool
) -> None:
    errors = {HOST: host, SERVICE: service}

    def getaddrinfo(name: str, port: None) -> list[object]:
        if (error := errors[name]) is not None:
            raise socket.gaierror(error, "not found")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert nodes._is_known(HOST) is is_known


class Store:
    """What a node sees of the store of node 0: a dictionary whose other writer is the test."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value

    def get(self, key: str) -> bytes:
        return self.values[key].encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)


def node_1() -> nodes.NodeGroup:
    group = nodes.NodeGroup(nodes.Nodes(1, ("faq-train-0", "faq-train-1"), ranks=1, address="127.0.0.1", port=29500))
    group._store = Store()
    return group


def test_a_watch_of_the_other_nodes_that_ends_is_told_as_what_it_is_and_to_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group, store = node_1(), Store()
    store.set("beat/0", "1")
    store.set("ended/0", "no JSON")
    group._thread = threading.Thread(target=group._beat, args=[store])
    group._thread.start()
    group._thread.join()
    trouble = group.find_trouble()
    assert type(trouble) is RuntimeError  # not NodeLost: that names another node
    assert str(trouble).startswith("node 1 (faq-train-1) can watch the other nodes no more: JSONDecodeError: ")
    assert "Traceback" in caplog.text
    with pytest.raises(RuntimeError, match="can watch the other nodes no more") as raised:
        group.share({})
    group.__exit__(RuntimeError, raised.value, None)
    assert "can watch the other nodes no more" in group._store.values["ended/1"]


@pytest.mark.parametrize("woken_first", ["the run", "the watch"])
def test_nodes_that_were_frozen_together_find_each_other_alive_as_they_wake(woken_first: str) -> None:
    group, store, moment = node_1(), Store(), [100.0]
    group._clock = AwakeClock(lambda: moment[0])
    store.set("beat/0", "1")
    group._look(store, 1)
    moment[0] += 3600  # and node 0 has not written again yet
    if woken_first == "the run":
        assert group.find_trouble() is None
    group._look(store, 2)
    assert group.find_trouble() is None
    moment[0] += 1
    store.set("beat/0", "2")
    group._look(store, 3)
    for count in range(int(nodes.LOST_SECONDS)):  # awake, it finds one that writes no more as before
        moment[0] += 1
        group._look(store, 4 + count)
        assert group.find_trouble() is None
    moment[0] += 1
    group._look(store, 99)
    assert isinstance(trouble := group.find_trouble(), TryAgain)
    assert trouble.reason == nodes.LOST


def test_a_store_that_answers_no_more_is_found_by_who_waits_for_it() -> None:
    group, moment = node_1(), [100.0]
    group._clock = AwakeClock(lambda: moment[0])
    store = Store()
    store.set("beat/0", "1")
    group._look(store, 1)
    for _ in range(int(nodes.LOST_SECONDS)):
        moment[0] += 1
        assert group.find_trouble() is None
    moment[0] += 1
    assert isinstance(group.find_trouble(), TryAgain)


class Watched:
    """Node 0 of several, whose ranks write to its store as the test says; a look is one second."""

    def __init__(self, count: int, ranks: int = 1) -> None:
        hosts = tuple(f"faq-train-{node}" for node in range(count))
        self.group = nodes.NodeGroup(nodes.Nodes(0, hosts, ranks=ranks, address="127.0.0.1", port=29500))
        self.group._store = self.store = Store()
        self.moment, self.looks = 100.0, 0
        self.group._clock = AwakeClock(lambda: self.moment)

    def write(self, key: str, *numbers: int) -> None:
        for number in numbers:
            self.store.set(f"{key}/{number}", "")

    def look(self, seconds: float = 1) -> None:
        for _ in range(int(seconds)):
            self.moment += 1
            self.looks += 1
            for node in self.group.nodes.others:
                self.store.set(f"beat/{node}", str(self.looks))
            self.group._look(self.store, self.looks)

    def missing(self) -> str:
        trouble = self.group.find_trouble()
        assert isinstance(trouble, TryAgain)
        assert trouble.reason == nodes.MISSING
        return trouble.message


def test_a_rank_that_does_not_come_to_connect_is_named_in_the_time_from_the_first_that_did() -> None:
    watched = Watched(3)
    watched.look(100)  # all ranks start
    watched.write("connecting", 0, 2)
    watched.look(1 + nodes.JOIN_SECONDS)
    assert watched.group.find_trouble() is None
    watched.look()
    assert watched.missing() == (
        "rank 1 of 3 on node 1 (faq-train-1) has not begun to connect to the other ranks within 45 s of the first that "
        "did: it hangs as it starts, or its machine is far slower than the others; see its log, its GPU, and the volume"
    )


def test_a_rank_that_begins_late_leaves_all_their_time_to_connect() -> None:
    watched = Watched(2)
    watched.write("connecting", 0)
    watched.look(nodes.JOIN_SECONDS)
    watched.write("connecting", 1)
    watched.look(nodes.JOIN_SECONDS)
    assert watched.group.find_trouble() is None
    watched.write("connected", 0, 1)
    watched.look(nodes.JOIN_SECONDS)
    assert watched.group.find_trouble() is None


def test_where_all_ranks_wait_for_each_other_to_connect_all_are_named() -> None:
    watched = Watched(3)
    watched.write("connecting", 0, 1, 2)
    watched.look(nodes.JOIN_SECONDS + 2)
    assert watched.missing() == (
        "rank 0 of 3 on node 0 (faq-train-0), rank 1 of 3 on node 1 (faq-train-1) and rank 2 of 3 on node 2 "
        "(faq-train-2) have not connected to the other ranks within 45 s, and which of them keeps the others waiting "
        "is not known: see their logs, whether NetworkPolicies let the pods of this run reach each other at all ports, "
        "and whether the network interface is the right one"
    )


def test_the_one_rank_that_has_not_connected_is_named_alone() -> None:
    watched = Watched(3)
    watched.write("connecting", 0, 1, 2)
    watched.write("connected", 0, 2)
    watched.look(nodes.JOIN_SECONDS + 2)
    assert watched.missing().startswith(
        "rank 1 of 3 on node 1 (faq-train-1) has not connected to the other ranks within 45 s: see its log, whether"
    )


def test_ranks_of_a_node_are_named_together_and_of_many_the_first() -> None:
    some = Watched(16, ranks=8).group.nodes
    assert some.of_ranks([0, 9]) == "rank 0 of 128 on node 0 (faq-train-0) and rank 9 of 128 on node 1 (faq-train-1)"
    assert some.of_ranks(range(8, 16)) == "ranks 8 to 15 of 128 on node 1 (faq-train-1)"
    named = ", ".join(some.of_node(node) for node in range(4))
    assert some.of_ranks(range(128)) == f"{named} and 96 more ranks"


def test_a_node_that_has_not_come_to_start_its_ranks_is_named() -> None:
    watched = Watched(3)
    watched.group.say_it_starts()
    watched.write("starting", 2)
    watched.look()
    trouble = watched.group.find_unstarted()
    assert isinstance(trouble, TryAgain)
    assert (trouble.reason, trouble.message) == (
        nodes.MISSING,
        "rank 1 of 3 on node 1 (faq-train-1) has not been started, and those of the other nodes wait for it: the node "
        "hangs before that; see its log, its GPUs, and the volume",
    )
    watched.write("starting", 1)
    watched.look()
    assert watched.group.find_unstarted() is None


@pytest.mark.parametrize("ended_first", [True, False])
def test_a_rank_that_fails_as_the_others_give_the_missing_one_up_is_not_blamed(ended_first: bool) -> None:
    watched = Watched(3)
    watched.write("connecting", 0, 2)
    watched.look(nodes.JOIN_SECONDS + 2)
    if ended_first:
        watched.store.set("ended/1", '{"failures": {}, "message": ""}')
        watched.store.set("ended/2", '{"failures": {}, "message": ""}')
        watched.look()
    with pytest.raises(TryAgain, match=r"rank 1 of 3 on node 1 .* has not begun to connect"):
        watched.group.share({0: RankFailure(1, 0.0, {"message": "Connection closed by peer"})})


@pytest.mark.parametrize("asked", [{}, {"message": ""}])
def test_a_rank_that_was_asked_to_stop_for_a_lost_node_does_not_hide_it(asked: dict[str, str]) -> None:
    """Its collective breaks as it is asked, and it leaves no reason."""
    watched = Watched(2)
    watched.write("connecting", 0, 1)
    watched.look()
    watched.group._heard[1] -= nodes.LOST_SECONDS + 1
    with pytest.raises(TryAgain, match=r"rank 1 of 2 on node 1 .* was not heard of") as raised:
        watched.group.share({0: RankFailure(EXIT_TRY_AGAIN, 0.0, asked)})
    assert raised.value.reason == nodes.LOST


def test_a_rank_that_was_killed_is_the_cause_though_another_has_not_connected() -> None:
    watched = Watched(2)
    watched.write("connecting", 0, 1)
    watched.look(nodes.JOIN_SECONDS + 2)
    watched.store.set("ended/1", '{"failures": {"1": {"exit_code": -9, "seconds": 0, "error": {}}}, "message": ""}')
    watched.look()
    assert set(watched.group.share({})) == {1}


def test_a_rank_that_fails_is_the_cause_though_the_time_of_another_is_over_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(2)
    watched.write("connecting", 0)
    watched.look(nodes.JOIN_SECONDS - 5)

    def sleep(seconds: float) -> None:
        watched.look(10)
        watched.store.set("ended/1", '{"failures": {}, "message": ""}')

    monkeypatch.setattr(nodes.time, "sleep", sleep)
    assert set(watched.group.share({0: RankFailure(1, 0.0, {"message": "ImportError"})})) == {0}


def test_a_node_may_say_its_end_while_the_failures_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Watched(3).group
    said = {"failures": {"1": {"exit_code": 1, "seconds": 0, "error": {}}}, "message": ""}
    group._ends = {1: said}

    def read(**given: Any) -> RankFailure:
        group._ends[2] = {"failures": {}, "message": ""}
        return RankFailure(**given)

    monkeypatch.setattr(nodes, "RankFailure", read)
    monkeypatch.setattr(nodes, "JOIN_SECONDS", 0.0)
    assert set(group.share({0: RankFailure(1, 0.0, {})})) == {0, 1}
