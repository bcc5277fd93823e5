"""A volume that hangs: what waits for it waits aside, and all else goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.agent import adapter as adapter_module
from llm_tuning.agent import fit as fit_module
from llm_tuning.agent import keeper as keeper_module
from llm_tuning.agent import plan as plan_module
from llm_tuning.agent.adapter import SETTLED_ATTEMPTS
from llm_tuning.agent.aside import MOST_AT_ONCE, Aside, StillRunning
from llm_tuning.agent.contract import ServeInput
from llm_tuning.agent.plan import make_plan
from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.errors import TryAgain
from tests.unit.llm_tuning.agent.conftest import Pod, must_not_answer
from tests.unit.llm_tuning.models.test_odd_files import write_base


class Volume:
    """Calls about a path that has one of these names hang until it is healed."""

    def __init__(self) -> None:
        self.hung: set[str] = set()
        self._healed = threading.Event()

    def hangs(self, module: Any, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
        real = getattr(module, function)

        def read(path: Path, *arguments: Any) -> Any:
            if path.name in self.hung:
                self._healed.wait(30)
            return real(path, *arguments)

        monkeypatch.setattr(module, function, read)

    def heal(self) -> None:
        self._healed.set()


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    """Its waits are those of production, a hundred times shorter."""
    made = Volume()
    monkeypatch.setattr(keeper_module, "READ_SECONDS", 0.05)
    monkeypatch.setattr(keeper_module, "PROOF_SECONDS", 0.45)
    monkeypatch.setattr(adapter_module, "SLOW_SECONDS", 0.3)
    yield made
    made.heal()


async def settle(pod: Pod, name: str) -> int:
    """Turns until it is settled."""
    for turn in range(100):
        if pod.adapter(name).settled:
            return turn
        await pod.turn(1)
    raise AssertionError("it is never settled")


async def test_a_read_that_hangs_holds_up_no_other_and_gets_a_reason(
    pod: Pod, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.hangs(fit_module, "inspect_adapter", monkeypatch)
    volume.hung = {"ft_hung"}
    pod.want({"bad": "ft_hung", "good": "ft_b"})
    await pod.turn()
    assert pod.reason("ft_hung") == "Loading"
    assert pod.adapter("ft_hung").message == "models/ft_hung is being read"
    assert pod.keeper.blocked("ft_b") is None
    await settle(pod, "ft_hung")
    assert pod.reason("ft_hung") == "LoadFailed"
    assert "s and more: its volume or the engine is slow, or does not answer" in pod.adapter("ft_hung").message
    assert pod.keeper.ready, "a failed one does not hold the pod up"
    assert must_not_answer(pod, "ft_hung")
    volume.heal()
    for _ in range(3):
        await pod.turn(1)
    assert pod.keeper.blocked("ft_hung") is None, "and taken when it can be"


async def test_the_same_read_is_not_begun_again_while_it_hangs(
    pod: Pod, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.hangs(fit_module, "inspect_adapter", monkeypatch)
    volume.hung = {"ft_hung"}
    pod.want({"bad": "ft_hung"})
    before = threading.active_count()
    for _ in range(10):
        await pod.turn(1)
    assert threading.active_count() <= before + 1


async def test_a_proof_that_hangs_holds_up_no_other(pod: Pod, volume: Volume) -> None:
    real = pod.proofs

    def prove(path: Path, name: str) -> Any:
        if name == "ft_hung":
            volume._healed.wait(30)
        return real(path, name)

    pod.keeper.prove = prove
    pod.want({"bad": "ft_hung", "good": "ft_b"})
    await pod.turn()
    assert pod.reason("ft_hung") == "LoadFailed"
    await pod.turn(1)
    assert pod.keeper.blocked("ft_b") is None
    volume.heal()
    await pod.turn(1)
    await pod.turn(1)
    assert pod.keeper.blocked("ft_hung") is None


async def test_a_proof_that_hangs_counts_for_no_other_engine(pod: Pod, volume: Volume) -> None:
    """The engine restarts while it hangs: its numbers are void, and it is asked for again."""
    pod.proofs.hold = True
    pod.want({"support": "ft_a"})
    await pod.turn()
    await pod.engine.restart()
    pod.proofs.hold = False
    await pod.turn(1)
    await pod.turn(1)
    assert pod.proofs.asked == ["ft_a", "ft_a"]
    assert pod.keeper.blocked("ft_a") is None


async def test_what_hangs_is_bounded() -> None:
    aside, healed = Aside(), threading.Event()
    for number in range(MOST_AT_ONCE + 3):
        with pytest.raises(StillRunning):
            await aside.run(str(number), lambda: healed.wait(30), seconds=0.01)
    assert sum(thread.name in map(str, range(20)) for thread in threading.enumerate()) == MOST_AT_ONCE
    healed.set()
    for number in range(MOST_AT_ONCE + 3):
        assert await aside.run(str(number), lambda: True, seconds=5)


def test_a_plan_is_made_without_what_hangs(tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.llm_tuning.agent.conftest import desire, write_adapter

    volume.hangs(plan_module, "_fit_adapter", monkeypatch)
    monkeypatch.setattr(plan_module, "ADAPTER_SECONDS", 0.1)
    names = [f"ft_hung{number}" for number in range(SETTLED_ATTEMPTS)]
    volume.hung = set(names)
    write_base(tmp_path / "claim/base/tiny")
    for name in (*names, "ft_good"):
        write_adapter(tmp_path / "claim/models", name, rank=64, base_hash="")
    given = ServeInput(model_path="base/tiny", base_name="tiny", gpus=1, vllm=VllmSpec())
    wanted = desire({name: name for name in (*names, "ft_good")})
    assert make_plan(given, wanted, tmp_path / "claim", scratch=tmp_path).max_lora_rank == 64


def test_a_base_whose_volume_hangs_is_tried_again(
    tmp_path: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.llm_tuning.agent.conftest import desire

    volume.hangs(plan_module, "inspect_base", monkeypatch)
    monkeypatch.setattr(plan_module, "VOLUME_SECONDS", 0.1)
    volume.hung = {"tiny"}
    write_base(tmp_path / "claim/base/tiny")
    given = ServeInput(model_path="base/tiny", base_name="tiny", gpus=1, vllm=VllmSpec())
    with pytest.raises(TryAgain, match=r"base/tiny: its volume does not answer"):
        make_plan(given, desire({}), tmp_path / "claim", scratch=tmp_path)
