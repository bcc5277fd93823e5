"""One vLLM of this machine and the agent that a pod has beside it, both on loopback.

The agent's parts are those of a cluster: the plan, the keeper that loads and proves adapters while vLLM runs, the door
that answers 503 with a reason. They run in the server's process; vLLM runs in one of its own, which ends with it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import aiohttp
from aiohttp import web

from llm_tuning.agent.contract import DesiredRoutes, Report, ServeInput
from llm_tuning.agent.keeper import Keeper
from llm_tuning.agent.limits import MAX_CHOICES
from llm_tuning.agent.metrics import Metrics
from llm_tuning.agent.plan import make_plan
from llm_tuning.agent.server import AgentServer
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.client.objects import InferenceServiceView
from llm_tuning.core.host_memory import free_host_bytes
from llm_tuning.engines.vllm.engine import VllmEngine
from llm_tuning.errors import InputError, Problem
from llm_tuning.openai_api.local import child
from llm_tuning.openai_api.local.machine import Machine
from llm_tuning.serving.server_process import STOP_SECONDS, ServerProcess

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
SILENT_SECONDS = 60.0
"""An engine that was up and does not answer for so long is started again."""
DRAIN_SECONDS = 30.0
"""For answers under way, before an engine is ended for a training or for another base."""
LOOK_SECONDS = 0.1
_NOT_PLANNED = (
    AdapterReason.RANK_TOO_HIGH,
    AdapterReason.TARGET_MODULES_MISMATCH,
    AdapterReason.TOO_MANY_ADAPTERS,
)
"""What may be otherwise with an engine that is planned for the adapter."""


@dataclass
class LocalEngine:
    """It runs from `start` to `stop`; it answers when its keeper says so."""

    service: InferenceServiceView
    """As it was when the engine was started."""
    url: str
    """Of the agent."""
    keeper: Keeper
    _planned: frozenset[str]
    """The adapters that it was planned for."""
    _agent: AgentServer
    _runner: web.AppRunner
    _session: aiohttp.ClientSession
    _keeping: asyncio.Task[None]
    _process: ServerProcess
    _up_at: float = field(default_factory=time.monotonic)
    _has_been_up: bool = False

    @classmethod
    async def start(
        cls, service: InferenceServiceView, desired: DesiredRoutes, machine: Machine, root: Path, folder: Path
    ) -> Self:
        """Plan and start it, and do not wait until it answers; `folder` is for its log and what it needs.

        Raises InputError for a base that cannot be served, and TryAgain where its files cannot be read now.
        """
        await asyncio.to_thread(_leave_none_behind, folder)
        port, spec = _free_port(), service.spec
        if spec.model.path is None:
            raise InputError(Problem("model.uri", "is not fetched here", "fetch it, and name its folder as model.path"))
        cards = machine.serving_cards(service)
        given = ServeInput(
            model_path=spec.model.path,
            base_name=spec.base_name,
            gpus=len(cards),
            memory_bytes=free_host_bytes(),
            vllm=spec.vllm,
        )
        plan = await asyncio.to_thread(make_plan, given, desired, root, scratch=folder, engine_port=port)
        for note in plan.notes:
            log.warning("%s: %s", service.name, note)
        process = ServerProcess(folder, port=port)
        _, *arguments = plan.command
        # Not in a thread: the kernel tells the child of the end of the thread that has made it.
        process.start(
            (sys.executable, child.__file__, str(os.getpid()), child.EXEC, machine.vllm.python, *arguments),
            dict(os.environ) | machine.engine_environment(cards, os.environ) | plan.environment,
        )
        try:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), trust_env=False, auto_decompress=False
            )
            engine = VllmEngine(f"http://{HOST}:{port}", session)
            keeper = Keeper(engine, plan, root / "models")
            keeper.want(desired)
            agent = AgentServer(
                keeper,
                engine,
                Metrics(keeper),
                plan.base_name,
                max_choices=spec.vllm.max_choices or MAX_CHOICES,
                reads_tool_calls=bool(plan.tool_call_parser),
            )
            runner = agent.runner()
            await runner.setup()
            site = web.TCPSite(runner, HOST, _free_port())
            await site.start()
        except BaseException:
            await asyncio.to_thread(process.stop)
            raise
        log.info("%s: vLLM starts, its log is %s", service.name, process.log)
        keeping = asyncio.create_task(keeper.run())
        planned = frozenset(desired.model_ids)
        return cls(service, site.name, keeper, planned, agent, runner, session, keeping, process)

    @property
    def report(self) -> Report:
        return self.keeper.report()

    def is_for(self, service: InferenceServiceView) -> bool:
        """Return whether it is what the InferenceService asks for now, routes aside."""
        mine, asked = self.service.spec, service.spec
        same = (mine.model, mine.vllm, mine.resources) == (asked.model, asked.vllm, asked.resources)
        return same and self.service.uid == service.uid and bool(asked.replicas)

    def fault(self) -> str | None:
        """Return why it has to be started again; None while it does what it should, or starts."""
        if (ended := self._process.ended()) is not None:
            return ended
        if self._keeping.done():
            error = None if self._keeping.cancelled() else self._keeping.exception()
            return f"what keeps its adapters has ended: {error!r}"
        now = time.monotonic()
        if self.keeper.engine_up or not self._has_been_up:
            self._up_at, self._has_been_up = now, self.keeper.engine_up
        silent = now - self._up_at
        return f"vLLM has not answered for {silent:.0f} s" if silent > SILENT_SECONDS else None

    def outgrown(self) -> str | None:
        """Return the adapter that it refuses, and would take if it were started for it; None for none."""
        found = (each for each in self.report.adapters if each.reason in _NOT_PLANNED)
        return next((each.model_id for each in found if each.model_id not in self._planned), None)

    async def stop(self, *, drain: bool) -> None:
        """End it, after the answers under way if they are to be waited for."""
        self._agent.draining = True
        if drain:
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_SECONDS):
                    while self._agent.active:
                        await asyncio.sleep(LOOK_SECONDS)
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.to_thread(self._process.stop)
        self._process.release()


def _leave_none_behind(folder: Path) -> None:
    """Wait until what a killed server has started is gone, which keeps its memory until then; drop its files."""
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + STOP_SECONDS
    for path in folder.glob("launch_llm_*.lock"):
        with path.open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        fix = "end that process, or wait for it"
                        raise InputError(Problem(str(path), "is held by a vLLM that does not end", fix)) from None
                    time.sleep(LOOK_SECONDS)
    for path in folder.glob("launch_llm_*"):
        path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])
