"""When a node of a run counts as there and as lost, and what a fault of its own watch is told as."""

from __future__ import annotations

import socket
import threading

import pytest

from llm_tuning.errors import TryAgain
from llm_tuning.run import nodes
from llm_tuning.run.awake import AwakeClock

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
