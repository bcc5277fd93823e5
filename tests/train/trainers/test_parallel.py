"""How ranks of several nodes come together."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from llm_tuning.errors import TryAgain
from llm_tuning.run import nodes
from llm_tuning.trainers import parallel


@pytest.fixture
def two() -> list[nodes.NodeGroup]:
    """Two nodes of a run in this process, which have not met yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    hosts = ("127.0.0.1", "127.0.0.1")
    return [nodes.NodeGroup(nodes.Nodes(node, hosts, ranks=1, address="127.0.0.1", port=port)) for node in range(2)]


def test_a_rank_waits_at_the_nodes_store_for_the_others_as_long_as_in_a_collective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL does so for its first message by the store's own time limit; gloo brings one of its own."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **settings: given.update(settings))
    server = parallel.serve_store("127.0.0.1", 0)
    with parallel.process_group(f"tcp://127.0.0.1:{server.port}", rank=1, world=2, device="cpu"):
        assert given["store"].timeout == parallel.COLLECTIVE_TIMEOUT


def test_a_node_that_hangs_before_it_starts_its_ranks_is_named_and_not_node_0(
    two: list[nodes.NodeGroup], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beats go on, and the agent of node 0 ends with an error of its store."""
    monkeypatch.setattr(nodes, "LINGER_SECONDS", 2.0)
    first, second = two
    with first, second:
        monkeypatch.setattr(parallel, "STORE_TIMEOUT", parallel.timedelta(seconds=5))
        with pytest.raises(TryAgain) as raised:
            parallel.run_ranks(
                ["-c", "pass"],
                environments=[{}],
                error_file=lambda rank: tmp_path / str(rank),
                stop=lambda: False,
                group=first,
            )
        second._say_end({}, "")
    assert raised.value.reason == nodes.MISSING
    assert raised.value.message.startswith("rank 1 of 2 on node 1 (127.0.0.1) has not been started, and those of")


def test_a_node_can_say_its_end_while_its_agent_waits_at_the_store(
    two: list[nodes.NodeGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "LINGER_SECONDS", 2.0)
    first, second = two
    with first, second:
        agents = second.agents_store()
        agents.set_timeout(parallel.timedelta(seconds=10))

        def wait() -> None:
            with pytest.raises(RuntimeError):
                agents.get("never")

        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(1)  # for it to wait there, which nothing tells
        began = time.monotonic()
        second._say_end({}, "")
        took = time.monotonic() - began
        waiting.join()
    assert took < 5
