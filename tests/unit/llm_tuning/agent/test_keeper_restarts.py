"""An engine that ends, restarts, hangs or answers with errors: what was lost is loaded again, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from llm_tuning.agent.keeper import SILENT_LOOKS
from llm_tuning.engines.vllm import engine as engine_module
from llm_tuning.engines.vllm.engine import VllmEngine
from tests.unit.llm_tuning.agent.conftest import Pod, eventually, must_not_answer


async def test_an_engine_that_restarted_between_two_looks_is_noticed(pod: Pod) -> None:
    pod.want({"support": {"ft_a": 1, "ft_b": 1}})
    await pod.turn()
    await pod.engine.restart()
    await pod.keeper.look()
    assert pod.keeper.blocked("ft_a") == "Loading: the engine has restarted; it is loaded again"
    assert must_not_answer(pod, "ft_b")
    assert not pod.keeper.ready, "nothing of it can answer"
    await pod.keeper.step()
    assert pod.proofs.asked == ["ft_a", "ft_b"] * 2
    assert pod.keeper.ready


async def test_one_adapter_lost_takes_no_other_down(pod: Pod) -> None:
    pod.want({"support": {"ft_a": 1, "ft_b": 1}})
    await pod.turn()
    del pod.engine.loras["ft_a"]
    await pod.keeper.look()
    assert must_not_answer(pod, "ft_a")
    assert pod.keeper.blocked("ft_b") is None
    assert pod.keeper.ready
    await pod.keeper.step()
    assert pod.keeper.blocked("ft_a") is None
    assert pod.engine.called("load") == ["ft_a", "ft_b", "ft_a"]


async def test_the_server_says_that_an_adapter_is_lost(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.engine.loras.clear()
    pod.keeper.lost("ft_a")
    pod.keeper.lost("ft_unknown")
    assert must_not_answer(pod, "ft_a")
    await pod.keeper.step()
    assert pod.keeper.blocked("ft_a") is None
    assert pod.engine.called("load") == ["ft_a", "ft_a"]


async def test_an_adapter_loaded_during_a_look_is_not_lost_and_a_loss_after_it_is_seen(pod: Pod) -> None:
    """The look was answered before the load, and read after it."""
    await pod.keeper.look()
    answer = await pod.keeper.engine.adapters()
    pod.want({"support": "ft_a"})
    slow = asyncio.Event()

    class Slow(VllmEngine):
        async def adapters(self) -> set[str]:
            await slow.wait()
            return answer

    real, pod.keeper.engine = pod.keeper.engine, Slow(pod.engine.url, pod.session)
    looking = asyncio.create_task(pod.keeper.look())
    await asyncio.sleep(0)
    pod.keeper.engine = real
    stepping = asyncio.create_task(pod.keeper.step())
    await eventually(lambda: "ft_a" in pod.engine.loras and pod.adapter("ft_a").loaded)
    slow.set()
    await looking
    await stepping
    assert pod.keeper.blocked("ft_a") is None, "loaded while the look was on its way"
    await pod.engine.restart()
    await pod.keeper.look()
    assert must_not_answer(pod, "ft_a"), "and the next look sees that it is gone"


async def test_a_busy_engine_may_miss_an_answer_and_a_hanging_one_is_down(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()

    async def misses(path: str, times: int) -> None:
        pod.engine.hang.add(path)
        with monkeypatch.context() as patched:
            patched.setattr(engine_module, "LOOK_SECONDS", 0.05)
            for _ in range(times):
                await pod.keeper.look()
        pod.engine.hang.clear()

    await misses("/health", SILENT_LOOKS - 1)
    assert pod.keeper.ready
    assert pod.keeper.blocked("ft_a") is None
    await pod.keeper.look()
    await misses("/v1/models", SILENT_LOOKS - 1)
    assert pod.keeper.ready, "an answer between makes good"
    await misses("/v1/models", 1)
    assert not pod.keeper.ready
    assert "does not answer within" in str(pod.keeper.blocked("ft_a"))


@pytest.mark.parametrize(("health", "models"), [(500, 200), (503, 200), (404, 200), (200, 500), (200, 401)])
async def test_an_engine_that_answers_with_an_error_is_down_at_once(pod: Pod, health: int, models: int) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.engine.health, pod.engine.models_status = health, models
    await pod.keeper.look()
    assert not pod.keeper.engine_up
    assert must_not_answer(pod, "ft_a")
    pod.engine.health, pod.engine.models_status = 200, 200
    await pod.turn()
    assert pod.keeper.blocked("ft_a") is None


async def test_an_engine_that_ends_while_an_adapter_is_unloaded(pod: Pod) -> None:
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.want({"support": "ft_b"})
    pod.engine.hang.add("/v1/unload_lora_adapter")
    step = asyncio.create_task(pod.keeper.step())
    await asyncio.sleep(0.05)
    await pod.engine.kill()
    await pod.keeper.look()
    await step
    pod.engine.hang.clear()
    await pod.engine.start()
    await pod.turn(1)
    await pod.turn(1)
    assert set(pod.engine.loras) == {"ft_b"}


async def test_an_engine_called_down_while_it_answers_an_unload(pod: Pod) -> None:
    """`/health` fails, the unload is answered: what is known of adapters was thrown away meanwhile."""
    pod.want({"support": "ft_a"})
    await pod.turn()
    pod.want({"support": "ft_b"})
    real = pod.keeper.engine

    class Slow(VllmEngine):
        async def unload(self, name: str) -> None:
            pod.engine.health = 500
            await pod.keeper.look()
            await real.unload(name)

    pod.keeper.engine = Slow(pod.engine.url, pod.session)
    await pod.keeper.step()
    pod.engine.health = 200
    pod.keeper.engine = real
    await pod.turn(1)
    await pod.turn(1)
    assert pod.keeper.blocked("ft_b") is None
    assert must_not_answer(pod, "ft_a")
