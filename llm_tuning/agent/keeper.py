"""Keeps the wanted adapters loaded in this pod's engine, and proves each; for ever.

An adapter may answer only between a verdict that allows it and the next sign that the engine has lost it. Two loops:
one checks the engine each second, the other takes adapters step by step (see `adapter`), so that a slow proof hides
no fault. What reads files or waits for the engine's numbers works aside: a volume that hangs holds up no other adapter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from llm_tuning.agent.adapter import Adapter
from llm_tuning.agent.aside import Aside, StillRunning
from llm_tuning.agent.contract import DesiredRoutes, Report
from llm_tuning.agent.engine_life import DEADLY_TIMES, Blame, Loads
from llm_tuning.agent.fit import Misfit, find_misfit
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.engines.plan import EnginePlan
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
"""Between two checks of an engine that is up."""
SILENT_LOOKS = 3
"""An engine that is busy may miss an answer; one that refuses the connection is down at once."""
UNLOAD_SECONDS = 60.0
"""How long requests of an adapter that is no longer wanted may continue."""
READ_SECONDS = 5.0
"""For an adapter's files, before the next adapter has its turn."""
PROOF_SECONDS = 45.0
"""For the numbers of a busy engine, before the next adapter has its turn."""

Prove = Callable[[Path, str], Proof]


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
    loads: Loads = field(default_factory=Loads)
    desired: DesiredRoutes | None = None
    engine_up: bool = False
    engine_message: str = "it is starting"
    in_flight: Counter[str] = field(default_factory=Counter)
    """Requests by model_id; the server counts them."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _adapters: dict[str, Adapter] = field(default_factory=dict)
    _unwanted: dict[str, float] = field(default_factory=dict)
    """Loaded, not wanted any more, and since when."""
    _engine_has: set[str] = field(default_factory=set)
    _was_ready: bool = False
    _blame: Blame = field(default_factory=Blame)
    _silent: int = 0
    _aside: Aside = field(default_factory=Aside)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    # --- what others call ------------------------------------------------------------------------------------------

    def want(self, desired: DesiredRoutes) -> None:
        """Take the routes to serve from now on."""
        if desired == self.desired:
            return
        self.desired = desired
        wanted = set(desired.model_ids)
        for name in [name for name in self._adapters if name not in wanted]:
            if self._adapters.pop(name).is_loaded:
                self._unwanted[name] = self.clock()
            self._aside.forget(name)
            self._aside.forget(_proof_of(name))
        for name in desired.model_ids:
            if name not in self._adapters:
                self._adapters[name] = Adapter(name)
        self._tell()

    def blocked(self, model_id: str) -> str | None:
        """Return why this adapter must not answer now; None if it may."""
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
        """Build the report of the present state."""
        return Report(
            revision=self.desired.revision if self.desired is not None else "",
            engine_up=self.engine_up,
            ready=self.ready,
            adapters=tuple(adapter.report() for adapter in self._adapters.values()),
        )

    def lost(self, model_id: str) -> None:
        """Note that the engine does not know an adapter it should have; it will be loaded again."""
        self._engine_has.discard(model_id)
        if adapter := self._adapters.get(model_id):
            self._lose(adapter, AdapterReason.LOADING, "the engine has lost it; it is loaded again")
            self._tell()

    # --- the engine --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run both loops."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._keep())

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS if self.engine_up else LOOK_SECONDS / 4)

    async def look(self) -> None:
        """Check once whether the engine is up and has the adapters that it should."""
        before = [adapter for adapter in self._adapters.values() if adapter.is_loaded]
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
            self.loads.found(len(has))
            self.engine_up, self.engine_message = True, ""
            self._tell()
        self._engine_has = has
        # Only what was loaded before the check: the engine may have answered it before a load that has ended since.
        gone = [adapter for adapter in before if adapter.is_loaded and adapter.model_id not in has]
        if not gone:
            return
        for adapter in gone:
            self._lose(adapter, AdapterReason.LOADING, "the engine has restarted; it is loaded again")
        if len(gone) == len(before):
            self._was_ready = False
            self.loads.set(0)
        self._tell()

    def _down(self, why: str) -> None:
        if self.engine_up:
            log.warning("the engine is down: %s", why)
            self._blame.engine_ended(self.clock())
        elif self.engine_message == why:
            return
        self.engine_up, self.engine_message, self._was_ready = False, why, False
        self._engine_has.clear()
        self._unwanted.clear()
        for adapter in self._adapters.values():
            self._lose(adapter, AdapterReason.ENGINE_DOWN, why)
        self._tell()

    def _lose(self, adapter: Adapter, reason: AdapterReason, message: str) -> None:
        self._aside.forget(_proof_of(adapter.model_id))  # its numbers are of an engine that is gone
        adapter.lost(reason, message)

    # --- the adapters ------------------------------------------------------------------------------------------------

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
        """Unload what is not wanted, take a step with each adapter that is due; returns for how long nothing is."""
        if not self.engine_up:
            return LOOK_SECONDS
        try:
            await self._unload()
            for adapter in list(self._adapters.values()):
                wanted = self._adapters.get(adapter.model_id) is adapter  # the list may have changed on the way
                if wanted and not adapter.is_judged and adapter.due <= self.clock():
                    await self._bring(adapter)
        except EngineDown as error:
            log.info("the engine went away: %s", error)
            return LOOK_SECONDS
        waiting = [adapter.due for adapter in self._adapters.values() if not adapter.is_judged]
        return min([LOOK_SECONDS, *(max(due - self.clock(), 0.05) for due in waiting)])

    async def _unload(self) -> None:
        # What an earlier agent of this pod has loaded is loaded again, for its files are not known.
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
        """Load one adapter and prove it; its state holds the outcome."""
        name = adapter.model_id
        if self._blame.is_deadly(name):
            text = (
                f"the engine ended {DEADLY_TIMES} times while it was loaded or proven; this pod tries no more; "
                "the error is in the log of its container vllm (kubectl logs POD -c vllm --previous)"
            )
            self._note(adapter, lambda: adapter.refused(Misfit(AdapterReason.LOAD_FAILED, text), self.clock()))
            return
        if not adapter.is_loaded and not await self._fits(adapter):
            return
        self._blame.trying(name)
        try:
            if adapter.is_loaded or await self._load(adapter):
                await self._prove_it(adapter)
        finally:
            self._blame.tried(name, judged=adapter.is_judged, now=self.clock())

    async def _fits(self, adapter: Adapter) -> bool:
        """Return whether the adapter may be loaded; if not, note in it why."""
        name = adapter.model_id
        try:
            misfit = self._no_room(name) or await self._aside.run(
                name, partial(find_misfit, self.models / name, self.plan), seconds=READ_SECONDS
            )
        except StillRunning as running:
            self._wait(adapter, AdapterReason.LOADING, f"models/{name} is being read", running.seconds)
            return False
        except Exception as error:  # whatever its files hold, it harms no other adapter
            log.warning("models/%s cannot be read", name, exc_info=True)
            text = f"models/{name} cannot be read ({type(error).__name__}: {error}); copy it again"
            misfit = Misfit(AdapterReason.ADAPTER_INVALID, text)
        if misfit is None:
            return True
        if name in self._engine_has:
            await self._drop(name)
        self._note(adapter, lambda: adapter.refused(misfit, self.clock()))
        return False

    def _no_room(self, name: str) -> Misfit | None:
        if len(self._engine_has - {name}) >= self.plan.max_adapters:
            most = self.plan.max_adapters
            text = (
                f"this engine has room for {most} adapters, planned when it started; restart the pods, raise "
                "spec.resources.memory or spec.vllm.maxLoras, or use another InferenceService"
            )
            return Misfit(AdapterReason.TOO_MANY_ADAPTERS, text)
        if self.plan.max_loads is not None and self.loads.count >= self.plan.max_loads:
            text = (
                f"this engine has loaded {self.loads.count} adapters since it started, and on the CPU those that it "
                "unloads keep their places; restart the pods, or set spec.vllm.maxLoras higher"
            )
            return Misfit(AdapterReason.TOO_MANY_ADAPTERS, text)
        return None

    async def _load(self, adapter: Adapter) -> bool:
        name = adapter.model_id
        try:
            if name in self._engine_has:
                await self._drop(name)
            await self._touch_loaded()
            self.loads.set(self.loads.count + 1)  # before, for it may be done although no answer comes
            await self.engine.load(name, str(self.models / name))
        except EngineDown as error:
            await self.look()
            if self.engine_up:  # it is this load that hangs: the others have their turn
                self._fail(adapter, AdapterReason.LOAD_FAILED, f"the engine does not load it: {error}")
            raise
        except EngineRefused as error:
            self.loads.set(self.loads.count - 1)
            self._fail(adapter, AdapterReason.LOAD_FAILED, f"the engine does not load it: {error}")
            return False
        self._engine_has.add(name)
        adapter.loaded()
        self._tell()
        return True

    async def _touch_loaded(self) -> None:
        """Use each loaded adapter once where the next load makes the engine forget the one unused for longest.

        What it forgot, it would read again from the volume for the next request: files that nobody has proven.
        """
        if self.plan.max_loads is not None or self.loads.count < self.plan.max_adapters:
            return
        for name in sorted(self._engine_has):
            with suppress(EngineRefused):  # it was used all the same
                await self.engine.touch(name)

    async def _prove_it(self, adapter: Adapter) -> None:
        name = adapter.model_id
        proof: Proof | Exception
        try:
            call = partial(self.prove or self._prove, self.models / name, name)
            proof = await self._aside.run(_proof_of(name), call, seconds=PROOF_SECONDS)
        except StillRunning as running:
            self._wait(adapter, AdapterReason.PROVING, "it is being proven", running.seconds)
            return
        except Exception as error:  # whatever its probes hold, it harms no other adapter
            proof = error
        # The engine may have restarted since the last check, and then the numbers are of two engines.
        await self.look()
        if not adapter.is_loaded or not self.engine_up:
            return
        if isinstance(proof, Proof):
            verdict = proof
            self._note(adapter, lambda: adapter.judged(verdict))
        else:
            self._fail(adapter, AdapterReason.PROVING, f"it could not be proven yet: {proof}")

    def _prove(self, path: Path, name: str) -> Proof:
        base_name = self.plan.base_name
        with closing(self.engine.probe()) as probe:
            has_numbers = _has_numbers(probe, base_name)  # asked first: an adapter's NaN can spoil the engine for all
            proof = prove(probe, path, name=name, base_name=base_name)
            if proof.verdict is Verdict.CANNOT_BE_PROVEN and has_numbers and not _has_numbers(probe, name):
                text = f"the engine computes no numbers with it (NaN or infinite), as it does without: {proof.message}"
                return replace(proof, verdict=Verdict.DIFFERENT, message=text)
            return proof

    # --- what is reported of them ------------------------------------------------------------------------------------

    def _fail(self, adapter: Adapter, reason: AdapterReason, message: str) -> None:
        self._note(adapter, lambda: adapter.failed(reason, message, self.clock()))

    def _wait(self, adapter: Adapter, reason: AdapterReason, message: str, seconds: float) -> None:
        self._note(adapter, lambda: adapter.waits(reason, message, self.clock(), seconds=seconds))

    def _note(self, adapter: Adapter, change: Callable[[], None]) -> None:
        before = adapter.report()
        change()
        if adapter.report() != before:
            log.info("adapter %s: %s: %s", adapter.model_id, adapter.reason, adapter.message)
            self._tell()

    def _tell(self) -> None:
        if self.engine_up and self.desired is not None:
            self._was_ready = self._was_ready or all(adapter.settled for adapter in self._adapters.values())
        self.changed.set()
        self._wake.set()


def _proof_of(name: str) -> str:
    """Return the key of the work that proves adapter `name`; the bare name is the key of the work that reads it."""
    return f"proof of {name}"


def _has_numbers(probe: Probe, name: str) -> bool:
    """Return whether log-probabilities under this name are numbers; an engine refuses to write others."""
    try:
        probe.logprobs(name, [range(8)])
    except (Unprovable, TokensRefused):
        return False
    return True
