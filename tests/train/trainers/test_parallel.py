"""How ranks of several nodes come together."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from llm_tuning.trainers import parallel


def test_a_rank_waits_at_the_nodes_store_for_the_others_as_long_as_in_a_collective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL does so for its first message by the store's own time limit; gloo brings one of its own."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **settings: given.update(settings))
    server = parallel.serve_store("127.0.0.1", 0)
    with parallel.process_group(f"tcp://127.0.0.1:{server.port}", rank=1, world=2, device="cpu"):
        assert given["store"].timeout == parallel.COLLECTIVE_TIMEOUT
