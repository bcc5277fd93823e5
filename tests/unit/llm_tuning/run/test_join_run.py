"""What a node that joins a run does where the folder that node 0 names does not show run.json yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.errors import TryAgain
from llm_tuning.run import tune
from llm_tuning.run.nodes import MISSING, NodeGroup, Nodes


@pytest.fixture
def group() -> NodeGroup:
    return NodeGroup(Nodes(1, ("faq-train-0", "faq-train-1"), ranks=1, address="127.0.0.1", port=29500))


def test_a_run_that_this_node_does_not_see_yet_is_looked_for_again(
    group: NodeGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = object()
    seen = [None, None, spec]
    monkeypatch.setattr(tune, "SEEN_POLL_SECONDS", 0)
    monkeypatch.setattr(tune, "read_run_spec", lambda work: seen.pop(0))
    assert tune._await_spec(tmp_path, group) is spec
    assert seen == []


def test_a_run_that_never_comes_to_sight_is_told_and_tried_again(
    group: NodeGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "SEEN_SECONDS", 0)
    with pytest.raises(TryAgain) as raised:
        tune._await_spec(tmp_path, group)
    assert raised.value.reason == MISSING
    assert str(tmp_path / "run.json") in raised.value.message
    assert "node 1 (faq-train-1)" in raised.value.message


def test_the_trouble_of_another_node_ends_the_look(
    group: NodeGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = TryAgain("NodeLost", "node 0 (faq-train-0) has ended: full")
    monkeypatch.setattr(group, "find_trouble", lambda: gone)
    with pytest.raises(TryAgain) as raised:
        tune._await_spec(tmp_path, group)
    assert raised.value is gone
