"""What a pod of an InferenceService runs, on loopback and in a folder, without Kubernetes.

A plan by `make_plan`, vLLM started with its command, and the agent: in this process (`serving_pod`), or in one of its
own (`python -m tests.support.serving_pod FOLDER ENGINE_PORT AGENT_PORT`). The claim is FOLDER/claim.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from llm_tuning.agent.contract import AdapterReport, DesiredRoute, DesiredRoutes, DesiredTarget, ServeInput
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.metrics import Metrics
from llm_tuning.agent.plan import make_plan
from llm_tuning.agent.server import AgentServer
from llm_tuning.api.inference_service import VllmSpec
from llm_tuning.engines.plan import EnginePlan
from llm_tuning.engines.vllm.engine import VllmEngine
from llm_tuning.serving.server_process import ServerProcess
from tests.support.vllm_server import READY_SECONDS, VLLM_PYTHON, free_port, require_vllm

CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
"""As the pod's container has it."""


def desired(routes: dict[str, str | dict[str, int]]) -> DesiredRoutes:
    """`routes` maps a name to a model_id, or to weights by model_id."""
    made = []
    for name, targets in routes.items():
        weights = {targets: 1} if isinstance(targets, str) else targets
        found = tuple(DesiredTarget(model_id=model_id, weight=weight) for model_id, weight in weights.items())
        made.append(DesiredRoute(name=name, targets=found))
    return DesiredRoutes(routes=tuple(made))


def plan_for(folder: Path, base: str, wanted: DesiredRoutes, *, port: int, vllm: VllmSpec | None = None) -> EnginePlan:
    """As the pod's init container decides; `base` is relative to the claim."""
    given = ServeInput(
        model_path=base, base_name=Path(base).name, gpus=0, vllm=vllm or VllmSpec.model_validate({"maxModelLen": 512})
    )
    scratch = folder / "run"
    scratch.mkdir(exist_ok=True)
    return make_plan(given, wanted, folder / "claim", scratch=scratch, engine_port=port)


@dataclass
class EngineProcess:
    """vLLM in a process group of its own, as the container would run it."""

    folder: Path
    plan: EnginePlan
    port: int
    _process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return int(self._process.pid_file.read_text())

    def pids(self) -> list[int]:
        """The leader, and all processes that it has started."""
        return [self.pid, *_children(self.pid)]

    def start(self) -> None:
        """Start it, and do not wait."""
        python, *arguments = self.plan.command
        assert python == "python3"
        self._process = ServerProcess(self.folder, port=self.port)
        self._process.start([str(VLLM_PYTHON), *arguments], dict(os.environ) | CPU | self.plan.environment)
        self._process.release()

    def wait(self) -> None:
        assert self._process is not None
        self._process.wait_until_it_answers(self.url, timeout_seconds=READY_SECONDS)

    def kill(self) -> None:
        """SIGKILL for all of it at once, as when a container is killed for memory."""
        os.killpg(self.pid, signal.SIGKILL)

    def kill_core(self) -> None:
        """SIGKILL for the process that computes; the API server finds out by itself, and ends."""
        cores = [pid for pid in self.pids() if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert cores, "vLLM has an engine core"
        for pid in cores:
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Wait until the leader has ended, and end what is left."""
        assert self._process is not None
        self._process.stop()

    def ended(self) -> bool:
        """Whether the leader has ended; it stays a zombie until `reap`."""
        return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    def log(self) -> str:
        assert self._process is not None
        return self._process.log.read_text(errors="replace")


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *_children(int(child))]
    return found


@contextmanager
def engine_process(folder: Path, plan: EnginePlan, *, port: int) -> Iterator[EngineProcess]:
    """vLLM that answers; it has ended when the block is left."""
    require_vllm()
    engine = EngineProcess(folder, plan, port)
    engine.start()
    try:
        engine.wait()
        yield engine
    finally:
        engine.reap()


@dataclass
class ServingPod:
    """A pod that runs. `url` is the agent's."""

    engine: EngineProcess
    keeper: Keeper
    server: AgentServer
    session: aiohttp.ClientSession
    """For the tests' own requests."""
    url: str
    claim: Path

    def want(self, routes: dict[str, str | dict[str, int]]) -> None:
        self.keeper.want(desired(routes))

    def adapter(self, model_id: str) -> AdapterReport:
        """As the operator is told."""
        return next(adapter for adapter in self.keeper.report().adapters if adapter.model_id == model_id)

    def settled(self) -> bool:
        report = self.keeper.report()
        return report.engine_up and all(adapter.settled for adapter in report.adapters)

    async def until(self, reached: Callable[[], bool], seconds: float = 120) -> float:
        """Wait; how long it took."""
        began = time.monotonic()
        while not reached():
            assert time.monotonic() - began < seconds, self.keeper.report()
            await asyncio.sleep(0.02)
        return time.monotonic() - began


@asynccontextmanager
async def serving_pod(
    folder: Path, base: str, routes: dict[str, str | dict[str, int]], *, vllm: VllmSpec | None = None
) -> AsyncIterator[ServingPod]:
    """vLLM and its agent. The agent begins at once, as in a pod: while vLLM starts."""
    require_vllm()
    port, agent_port = free_port(), free_port()
    plan = plan_for(folder, base, desired(routes), port=port, vllm=vllm)
    engine = EngineProcess(folder, EnginePlan.decode(plan.encode()), port)
    engine.start()
    tasks: list[asyncio.Task[Any]] = []
    try:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, trust_env=False, auto_decompress=False) as session,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False) as clients,
        ):
            calls = VllmEngine(engine.url, session)
            keeper = Keeper(calls, plan, folder / "claim" / "models")
            keeper.want(desired(routes))
            reads_calls = bool(plan.tool_call_parser)
            server = AgentServer(keeper, calls, Metrics(keeper), plan.base_name, reads_tool_calls=reads_calls)
            runner = server.runner()
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", agent_port).start()
            tasks.append(asyncio.create_task(keeper.run()))
            try:
                url = f"http://127.0.0.1:{agent_port}"
                yield ServingPod(engine, keeper, server, clients, url, folder / "claim")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await runner.cleanup()
    finally:
        await asyncio.to_thread(engine.reap)


def run_agent(folder: Path, engine_port: int, agent_port: int) -> int:
    """`python -m llm_tuning.agent serve` with folders and ports of our own; the plan and what is wanted lie in run/."""
    from llm_tuning.agent import commands as agent

    own = {"ROOT": folder / "claim", "RUN_DIR": folder / "run", "CONFIG_DIR": folder / "run"}
    for name, value in {**own, "ENGINE_PORT": engine_port, "AGENT_PORT": agent_port, "LEAVE_SECONDS": 0.0}.items():
        assert hasattr(agent, name), name
        setattr(agent, name, value)
    return agent.run(["serve"])


if __name__ == "__main__":
    sys.exit(run_agent(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
