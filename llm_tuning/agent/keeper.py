"""Keeps the wanted adapters loaded in this pod's engine, and proves each; for ever.

An adapter may answer only between a verdict that allows it and the next sign that the engine has lost it. Two loops:
one looks at the engine each second, the other brings adapters one at a time, so that a slow proof hides no fault.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from llm_tuning.agent.contract import AdapterReport, Desired, Effective, Report
from llm_tuning.agent.fit import Misfit, find_misfit
from llm_tuning.agent.plan import EnginePlan
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.engines.protocol import (
    Engine,
    EngineDown,
    EngineRefused,
    EngineSilent,
    Probe,
    TokensRefused,
    Unprovable,
)
from llm_tuning.proof.judge import Proof, Verdict
from llm_tuning.proof.prove import prove

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at an engine that is up."""
SILENT_LOOKS = 3
"""An engine that is busy may miss an answer; one that refuses the connection is down at once."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
FIRST_LOOK_AGAIN_SECONDS, LAST_LOOK_AGAIN_SECONDS = 10.0, 600.0
SETTLED_ATTEMPTS = 3
"""After so many failures an adapter counts as failed, and the pod no longer waits for it. It is tried on, seldom."""
DEADLY_SECONDS = 10.0
"""An engine that ends so soon after an adapter was loaded or proven has probably ended of it."""
DEADLY_TIMES = 2
"""After so many ends an adapter is not tried again on this pod: it would take the others down for ever."""
UNLOAD_SECONDS = 60.0
"""How long requests of an adapter that is no longer wanted may go on."""

VERDICTS: dict[Verdict, tuple[Effective, AdapterReason]] = {
    Verdict.EFFECTIVE: ("True", AdapterReason.EFFECTIVE),
    Verdict.NO_EFFECT: ("False", AdapterReason.NO_EFFECT),
    Verdict.DIFFERENT: ("False", AdapterReason.DIFFERENT),
    Verdict.TOO_SMALL_TO_TELL: ("Unknown", AdapterReason.TOO_SMALL_TO_TELL),
    Verdict.CANNOT_BE_PROVEN: ("Unknown", AdapterReason.CANNOT_BE_PROVEN),
}
MAY_ANSWER = (AdapterReason.EFFECTIVE, AdapterReason.TOO_SMALL_TO_TELL, AdapterReason.CANNOT_BE_PROVEN)

Prove = Callable[[Path, str], Proof]


@dataclass
class Adapter:
    """One adapter on this engine."""

    model_id: str
    loaded: bool = False
    effective: Effective = "Unknown"
    reason: AdapterReason = AdapterReason.LOADING
    message: str = "it is about to be loaded"
    settled: bool = False
    proven: bool = False
    """A verdict was reached on the engine as it runs now."""
    attempts: int = 0
    due: float = 0.0

    @property
    def may_answer(self) -> bool:
        return self.loaded and self.proven and self.reason in MAY_ANSWER

    def lost(self, reason: AdapterReason, message: str) -> None:
        """The engine does not have it any more; what was proven is void."""
        self.loaded = self.proven = self.settled = False
        self.effective, self.reason, self.message = "Unknown", reason, message
        self.attempts, self.due = 0, 0.0

    def failed(self, reason: AdapterReason, message: str, now: float) -> None:
        self.attempts += 1
        self.settled = self.settled or self.attempts >= SETTLED_ATTEMPTS
        self.effective = "Unknown"
        self.reason, self.message = reason, message
        self.due = now + _pause(self.attempts, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)

    def refused(self, misfit: Misfit, now: float) -> None:
        """Not to be loaded as it is; looked at again, for its files may be put right."""
        self.loaded = self.proven = False
        self.settled, self.effective = True, "False"
        self.reason, self.message = misfit.reason, misfit.message
        self.attempts += 1
        self.due = now + _pause(self.attempts, FIRST_LOOK_AGAIN_SECONDS, LAST_LOOK_AGAIN_SECONDS)


@dataclass
class Keeper:
    """`run` works until cancelled; `changed` is set whenever there is something to report."""

    engine: Engine
    plan: EnginePlan
    models: Path
    """The claim's models/."""
    prove: Prove | None = None
    """Stands in for the real proof in tests."""
    clock: Callable[[], float] = time.monotonic
    loads_file: Path | None = None
    """Remembers `_loads`, for an agent that is started anew beside a running engine."""
    desired: Desired | None = None
    engine_up: bool = False
    engine_message: str = "it is starting"
    in_flight: Counter[str] = field(default_factory=Counter)
    """Requests by model_id; the server counts them."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _adapters: dict[str, Adapter] = field(default_factory=dict)
    _unwanted: dict[str, float] = field(default_factory=dict)
    """Loaded, not wanted any more, and since when."""
    _engine_has: set[str] = field(default_factory=set)
    _loads: int = 0
    """Since the engine started."""
    _was_ready: bool = False
    _tried: tuple[str, float] | None = None
    """The adapter that is being loaded or proven, or failed to be, and until when an end of the engine is its doing."""
    _ends: Counter[str] = field(default_factory=Counter)
    """How often the engine has ended of an adapter."""
    _silent: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    # --- what others ask -------------------------------------------------------------------------------------------

    def want(self, desired: Desired) -> None:
        """What is to be served from now on."""
        if desired == self.desired:
            return
        self.desired = desired
        wanted = set(desired.model_ids)
        for name in [name for name in self._adapters if name not in wanted]:
            if self._adapters.pop(name).loaded:
                self._unwanted[name] = self.clock()
        for name in desired.model_ids:
            if name not in self._adapters:
                self._adapters[name] = Adapter(name)
        self._tell()

    def blocked(self, model_id: str) -> str | None:
        """Why this adapter must not answer now; None if it may."""
        adapter = self._adapters.get(model_id)
        if adapter is None:
            return "is not among the wanted adapters"
        if not self.engine_up:
            return f"the engine is down: {self.engine_message}"
        return None if adapter.may_answer else f"{adapter.reason}: {adapter.message}"

    @property
    def ready(self) -> bool:
        """Engine up and every adapter settled; an adapter that comes later does not take it back."""
        return self.engine_up and self._was_ready

    def report(self) -> Report:
        """The state of now."""
        return Report(
            revision=self.desired.revision if self.desired is not None else "",
            engine_up=self.engine_up,
            ready=self.ready,
            adapters=tuple(
                AdapterReport(
                    model_id=adapter.model_id,
                    loaded=adapter.loaded,
                    effective=adapter.effective,
                    settled=adapter.settled,
                    reason=adapter.reason,
                    message=adapter.message,
                )
                for adapter in self._adapters.values()
            ),
        )

    def lost(self, model_id: str) -> None:
        """The engine said that it does not know an adapter it should have."""
        self._engine_has.discard(model_id)
        if adapter := self._adapters.get(model_id):
            adapter.lost(AdapterReason.LOADING, "the engine has lost it; it is loaded again")
            self._tell()

    # --- the loops -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Both loops."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._keep())

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS if self.engine_up else LOOK_SECONDS / 4)

    async def look(self) -> None:
        """One look at the engine: is it up, and does it have what it should?"""
        before = [adapter for adapter in self._adapters.values() if adapter.loaded]
        try:
            has = await self.engine.adapters()
        except EngineDown as error:
            self._silent += 1
            if not isinstance(error, EngineSilent) or self._silent >= SILENT_LOOKS:
                self._down(str(error))
            return
        self._silent = 0
        if not self.engine_up:
            log.info("the engine is up")
            self._count_loads(max(len(has), self._noted_loads()) if has else 0)
            self.engine_up, self.engine_message = True, ""
            self._tell()
        self._engine_has = has
        # Only what was loaded before the look: the engine may have answered it before a load that has ended since.
        gone = [adapter for adapter in before if adapter.loaded and adapter.model_id not in has]
        if not gone:
            return
        for adapter in gone:
            adapter.lost(AdapterReason.LOADING, "the engine has restarted; it is loaded again")
        if len(gone) == len(before):
            self._was_ready = False
            self._count_loads(0)
        self._tell()

    def _down(self, why: str) -> None:
        if self.engine_up:
            log.warning("the engine is down: %s", why)
            if self._tried is not None and self.clock() < self._tried[1]:
                self._ends[self._tried[0]] += 1
            self._tried = None
        elif self.engine_message == why:
            return
        self.engine_up, self.engine_message, self._was_ready = False, why, False
        self._engine_has.clear()
        self._unwanted.clear()
        for adapter in self._adapters.values():
            adapter.lost(AdapterReason.ENGINE_DOWN, why)
        self._tell()

    async def _keep(self) -> None:
        while True:
            seconds = await self.step()
            try:
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def step(self) -> float:
        """Bring what is due, unload what is not wanted; returns for how long there is nothing to do."""
        if not self.engine_up:
            return LOOK_SECONDS
        try:
            await self._unload()
            for adapter in list(self._adapters.values()):
                wanted = self._adapters.get(adapter.model_id) is adapter  # the list may have changed on the way
                if wanted and not adapter.proven and adapter.due <= self.clock():
                    await self._bring(adapter)
        except EngineDown as error:
            log.info("the engine went away: %s", error)
            return LOOK_SECONDS
        waiting = [adapter.due for adapter in self._adapters.values() if not adapter.proven]
        return min([LOOK_SECONDS, *(max(due - self.clock(), 0.05) for due in waiting)])

    async def _unload(self) -> None:
        # What an earlier agent of this pod has loaded is loaded anew, for nobody knows from which files.
        stray = self._engine_has - set(self._adapters) - set(self._unwanted)
        for name in stray:
            self._unwanted[name] = self.clock() - UNLOAD_SECONDS
        for name, since in list(self._unwanted.items()):
            if name in self._adapters:  # wanted again, before it was gone
                del self._unwanted[name]
                continue
            if self.in_flight[name] and self.clock() - since < UNLOAD_SECONDS:
                continue
            await self._drop(name)
            self._unwanted.pop(name, None)  # gone already where the engine went down meanwhile

    async def _drop(self, name: str) -> None:
        try:
            await self.engine.unload(name)
        except EngineRefused as error:  # it does not have it
            log.info("not unloaded: %s: %s", name, error)
        self._engine_has.discard(name)

    async def _bring(self, adapter: Adapter) -> None:
        """Load one adapter and prove it; whatever comes of it is in the adapter."""
        if self._ends[adapter.model_id] >= DEADLY_TIMES:
            text = f"the engine ended {DEADLY_TIMES} times while it was loaded or proven; this pod tries no more"
            self._note(adapter, lambda: adapter.refused(Misfit(AdapterReason.LOAD_FAILED, text), self.clock()))
            return
        path = self.models / adapter.model_id
        if not adapter.loaded:
            misfit = await self._misfit(path)
            if misfit is not None:
                if adapter.model_id in self._engine_has:
                    await self._drop(adapter.model_id)
                self._note(adapter, lambda: adapter.refused(misfit, self.clock()))
                return
        self._tried = (adapter.model_id, math.inf)
        try:
            if adapter.loaded or await self._load(adapter, path):
                await self._prove_it(adapter, path)
        finally:
            if self._tried is not None:  # else the engine has ended of it already
                self._tried = None if adapter.proven else (adapter.model_id, self.clock() + DEADLY_SECONDS)

    async def _prove_it(self, adapter: Adapter, path: Path) -> None:
        proof: Proof | Exception
        try:
            proof = await asyncio.to_thread(self.prove or self._prove, path, adapter.model_id)
        except Exception as error:  # whatever its probes hold, it harms no other adapter
            proof = error
        # The engine may have restarted since the last look, and then the numbers are of two engines.
        await self.look()
        if not adapter.loaded or not self.engine_up:
            return
        if isinstance(proof, Proof):
            self._note(adapter, lambda: _judged(adapter, proof))
            return
        text = f"it could not be proven yet: {proof}"
        self._note(adapter, lambda: adapter.failed(AdapterReason.PROVING, text, self.clock()))

    async def _misfit(self, path: Path) -> Misfit | None:
        if len(self._engine_has - {path.name}) >= self.plan.max_adapters:
            most = self.plan.max_adapters
            text = f"this engine has room for {most} adapters; set spec.vllm.maxLoras, or use another InferenceService"
            return Misfit(AdapterReason.TOO_MANY_ADAPTERS, text)
        if self.plan.max_loads is not None and self._loads >= self.plan.max_loads:
            text = (
                f"this engine has loaded {self._loads} adapters since it started, and on the CPU those that it unloads "
                "keep their places; restart the pods, or set spec.vllm.maxLoras higher"
            )
            return Misfit(AdapterReason.TOO_MANY_ADAPTERS, text)
        try:
            return await asyncio.to_thread(find_misfit, path, self.plan)
        except Exception as error:  # whatever its files hold, it harms no other adapter
            log.warning("models/%s cannot be looked at", path.name, exc_info=True)
            text = f"models/{path.name} cannot be read ({type(error).__name__}: {error}); copy it again"
            return Misfit(AdapterReason.ADAPTER_INVALID, text)

    async def _load(self, adapter: Adapter, path: Path) -> bool:
        try:
            if adapter.model_id in self._engine_has:
                await self._drop(adapter.model_id)
            self._count_loads(self._loads + 1)  # before, for it may be done although no answer comes
            await self.engine.load(adapter.model_id, str(path))
        except EngineDown as error:
            await self.look()
            if self.engine_up:  # it is this load that hangs: the others have their turn
                text = f"the engine does not load it: {error}"
                self._note(adapter, lambda: adapter.failed(AdapterReason.LOAD_FAILED, text, self.clock()))
            raise
        except EngineRefused as error:
            self._count_loads(max(self._loads - 1, 0))
            text = f"the engine does not load it: {error}"
            self._note(adapter, lambda: adapter.failed(AdapterReason.LOAD_FAILED, text, self.clock()))
            return False
        self._engine_has.add(adapter.model_id)
        adapter.loaded, adapter.reason, adapter.message = True, AdapterReason.PROVING, "loaded, and being proven"
        self._tell()
        return True

    def _count_loads(self, loads: int) -> None:
        self._loads = loads
        if self.loads_file is not None:
            self.loads_file.write_text(str(loads))

    def _noted_loads(self) -> int:
        try:
            return int(self.loads_file.read_text()) if self.loads_file is not None else 0
        except (OSError, ValueError):
            return 0

    def _prove(self, path: Path, name: str) -> Proof:
        base_name = self.plan.base_name
        with closing(self.engine.probe()) as server:
            has_numbers = _has_numbers(server, base_name)  # asked first: an adapter's NaN can spoil the engine for all
            proof = prove(server, path, name=name, base_name=base_name)
            if proof.verdict is Verdict.CANNOT_BE_PROVEN and has_numbers and not _has_numbers(server, name):
                text = f"the engine computes no numbers with it (NaN or infinite), as it does without: {proof.message}"
                return replace(proof, verdict=Verdict.DIFFERENT, message=text)
            return proof

    def _note(self, adapter: Adapter, change: Callable[[], None]) -> None:
        change()
        log.info("adapter %s: %s: %s", adapter.model_id, adapter.reason, adapter.message)
        self._tell()

    def _tell(self) -> None:
        if self.engine_up and self.desired is not None:
            self._was_ready = self._was_ready or all(adapter.settled for adapter in self._adapters.values())
        self.changed.set()
        self._wake.set()


def _has_numbers(server: Probe, name: str) -> bool:
    """Whether log-probabilities under this name are numbers; an engine refuses to write others."""
    try:
        server.logprobs(name, [range(8)])
    except (Unprovable, TokensRefused):
        return False
    return True


def _pause(attempts: int, first: float, last: float) -> float:
    """Doubled with each attempt."""
    return min(first * 2.0 ** min(attempts - 1, 32), last)


def _judged(adapter: Adapter, proof: Proof) -> None:
    adapter.effective, adapter.reason = VERDICTS[proof.verdict]
    adapter.message = proof.message
    adapter.proven = adapter.settled = True
