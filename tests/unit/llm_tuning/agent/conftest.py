"""An agent in one process with a fake engine; adapters and bases as small files written by hand, without torch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from llm_tuning.agent.contract import AdapterReport, DesiredRoute, DesiredRoutes, DesiredTarget
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.metrics import Metrics
from llm_tuning.agent.server import AgentServer
from llm_tuning.engines.plan import EnginePlan
from llm_tuning.engines.vllm.engine import VllmEngine
from llm_tuning.proof.judge import Proof, Verdict
from tests.support.fake_engine import FakeEngine
from tests.support.vllm_server import free_port

BASE = "base"
BASE_HASH = "b" * 64
TEMPLATE = "{{ messages }}"
MODULES = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")

PLAN = EnginePlan(
    command=("vllm",),
    environment={},
    base_name=BASE,
    base_hash=BASE_HASH,
    max_lora_rank=16,
    max_adapters=256,
    target_modules=MODULES,
    template=TEMPLATE,
    template_source="base/tiny's own template",
)


def desire(routes: Mapping[str, Mapping[str, int] | str | Iterable[DesiredTarget]], rank: int = 0) -> DesiredRoutes:
    """`{"support": {"ft_a": 9, "ft_b": 1}}`, or one model_id, or targets."""

    def targets(given: Mapping[str, int] | str | Iterable[DesiredTarget]) -> tuple[DesiredTarget, ...]:
        if isinstance(given, str):
            return (DesiredTarget(model_id=given),)
        if isinstance(given, Mapping):
            return tuple(DesiredTarget(model_id=name, weight=weight) for name, weight in given.items())
        return tuple(given)

    return DesiredRoutes(
        routes=tuple(DesiredRoute(name=name, targets=targets(given)) for name, given in routes.items()), rank=rank
    )


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Zeros in float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_adapter(
    models: Path,
    name: str,
    *,
    rank: int = 8,
    modules: Iterable[str] = ("q_proj", "v_proj"),
    inside: str = "model.layers.0.self_attn.",
    base_hash: str = BASE_HASH,
    template: str | None = None,
    dtype: str = "",
    config: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """A whole adapter as the registry publishes it; without probes unless `dtype` is given."""
    folder = models / name
    folder.mkdir(parents=True)
    shapes = {f"base_model.model.{inside}{module}.lora_{side}.weight": (1, 1) for module in modules for side in "AB"}
    write_safetensors(folder / "adapter_model.safetensors", shapes)
    digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
    made = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "bias": "none", **(config or {})}
    (folder / "adapter_config.json").write_text(json.dumps(made))
    about = {"model_id": name, "base": {"name": "tiny", "weight_hash": base_hash}}
    about |= {"files": {"adapter_model.safetensors": digest}, **(manifest or {})}
    (folder / "model.json").write_text(json.dumps(about))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if dtype:
        (folder / "parity.json").write_text(json.dumps({"version": 1, "dtype": dtype, "probes": []}))
    return folder


class Proofs:
    """Stands in for the proof: verdicts by model_id, effective without one. `hold` makes it wait for `release`."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict | Exception] = {}
        self.asked: list[str] = []
        self.hold = False
        self.begun = threading.Event()
        self._released = threading.Event()

    def __call__(self, path: Path, name: str) -> Proof:
        self.asked.append(name)
        self.begun.set()
        if self.hold:
            self._released.wait(10)
        verdict = self.verdicts.get(name, Verdict.EFFECTIVE)
        if isinstance(verdict, Exception):
            raise verdict
        return Proof(verdict, f"{name} is {verdict}", name=name)

    def release(self) -> None:
        self._released.set()

    async def wait_until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 5)
        self.begun.clear()


@dataclass
class Pod:
    """A keeper and its engine; time is `now`. `serve` opens the door."""

    engine: FakeEngine
    keeper: Keeper
    proofs: Proofs
    session: aiohttp.ClientSession
    models: Path
    now: float = 1000.0
    url: str = ""
    server: AgentServer = field(init=False, repr=False)

    def write(self, *names: str, **options: Any) -> None:
        for name in names:
            write_adapter(self.models, name, **options)

    def want(self, routes: Mapping[str, Any]) -> None:
        """Their adapters lie on the claim, unless a test has written others."""
        desired = desire(routes)
        for name in desired.model_ids:
            if not (self.models / name).exists():
                write_adapter(self.models, name)
        self.keeper.want(desired)

    async def turn(self, seconds: float = 0.0) -> None:
        """`seconds` later: one look, and one step."""
        self.now += seconds
        await self.keeper.look()
        await self.keeper.step()

    def adapter(self, name: str) -> AdapterReport:
        return next(adapter for adapter in self.keeper.report().adapters if adapter.model_id == name)

    def reason(self, name: str) -> str:
        return self.adapter(name).reason

    async def chat(self, model: Any, **further: Any) -> Answer:
        return await self.post({"model": model, "messages": [], **further})

    async def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> Answer:
        options |= {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.session.post(self.url + path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def get(self, path: str, **options: Any) -> Answer:
        async with self.session.get(self.url + path, **options) as response:
            return Answer(response.status, response.headers.copy(), await response.read())


@dataclass
class Answer:
    """What a client got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def error(self) -> str:
        return str(json.loads(self.body)["error"]["message"])

    @property
    def model(self) -> str:
        """Who answered, by the fake engine."""
        return str(json.loads(self.body)["choices"][0]["message"]["content"]).removeprefix("I am ")


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(trust_env=False) as opened:
        yield opened


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    """It runs."""
    fake = FakeEngine(base=BASE)
    await fake.start()
    try:
        yield fake
    finally:
        await fake.kill()


@pytest.fixture
async def make_pod(
    engine: FakeEngine, session: aiohttp.ClientSession, tmp_path: Path
) -> AsyncIterator[Callable[..., Pod]]:
    """A pod whose loops do not run by themselves: tests take each look and step."""
    proofs: list[Proofs] = []

    def make(plan: EnginePlan = PLAN) -> Pod:
        proof = Proofs()
        proofs.append(proof)
        models = tmp_path / "models"
        models.mkdir(exist_ok=True)
        keeper = Keeper(VllmEngine(engine.url, session), plan, models, prove=proof)
        pod = Pod(engine, keeper, proof, session, models)
        keeper.clock = lambda: pod.now
        return pod

    yield make
    for proof in proofs:
        proof.release()


@pytest.fixture
def pod(make_pod: Callable[..., Pod]) -> Pod:
    return make_pod()


@pytest.fixture
async def open_door() -> AsyncIterator[Callable[..., Any]]:
    """Serve a pod's requests as `python -m llm_tuning.agent serve` does."""
    runners: list[web.AppRunner] = []

    async def open_(pod: Pod, *, cancellation: bool = True, **options: Any) -> Pod:
        pod.server = AgentServer(pod.keeper, pod.keeper.engine, Metrics(pod.keeper), BASE, **options)
        runner = pod.server.runner(handler_cancellation=cancellation, shutdown_timeout=0.01)
        runners.append(runner)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        pod.url = f"http://127.0.0.1:{port}"
        return pod

    yield open_
    for runner in runners:
        await runner.cleanup()


Open = Callable[..., Awaitable[Pod]]
SHARED = {"support": {"ft_a": 1, "ft_b": 1}}


@pytest.fixture
async def door(pod: Pod, open_door: Open) -> Pod:
    """Serves ft_a under `a`, ft_b under `b`, and both under `support`."""
    pod.want({"a": "ft_a", "b": "ft_b", **SHARED})
    await pod.turn()
    assert pod.keeper.ready
    return await open_door(pod)


async def eventually(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Until it holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def must_not_answer(pod: Pod, name: str) -> bool:
    return pod.keeper.blocked(name) is not None


async def metric(pod: Pod, name: str, **labels: str) -> float:
    text = (await pod.get("/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def events(content: bytes) -> list[Any]:
    """Of a stream, each whole."""
    parts = [part for part in content.decode().split("\n\n") if part]
    assert all(part.startswith("data: ") for part in parts), parts
    return [part[6:] if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]
