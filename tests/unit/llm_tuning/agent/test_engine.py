"""The calls to an engine, and its own words where it refuses one."""

from __future__ import annotations

import pytest

from llm_tuning.engines.protocol import EngineDown, EngineRefused
from llm_tuning.engines.vllm.stream import error_text
from tests.support.fake_engine import FakeEngine
from tests.unit.llm_tuning.agent.conftest import Pod


async def test_calls_to_the_engine(engine: FakeEngine, pod: Pod) -> None:
    calls = pod.keeper.engine
    await calls.load("ft_a", "/models/ft_a")
    assert await calls.adapters() == {"ft_a"}
    with pytest.raises(EngineRefused, match=r"^400: The lora adapter 'ft_a' has already been loaded"):
        await calls.load("ft_a", "/models/ft_a")
    await calls.touch("ft_a")
    assert engine.bodies == [{"model": "ft_a", "prompt": [0], "max_tokens": 1}]
    await calls.unload("ft_a")
    with pytest.raises(EngineRefused, match=r"^404: .*cannot be found"):
        await calls.unload("ft_a")
    assert b"vllm:" in await calls.metrics()
    await engine.kill()
    for call in (calls.adapters(), calls.load("a", "a"), calls.unload("a"), calls.touch("a"), calls.metrics()):
        with pytest.raises(EngineDown, match="does not answer"):
            await call


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error": {"message": "no\\n room"}}', "no room"),
        (b'{"message": "old form"}', "old form"),
        (b'{"error": "plain"}', "plain"),
        (b"[1]", "[1]"),
        (b"<html>\xff", "<html>\ufffd"),
        (b"x" * 1000, "x" * 400),
    ],
)
def test_what_an_engine_says(body: bytes, text: str) -> None:
    assert error_text(body) == text
