"""The Lease: at no moment do two processes believe that they may write, whatever is paused, lost or late."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tuning_operator.core import lease as module
from tuning_operator.core.errors import AlreadyExists, Conflict, LeaseLost, Unavailable
from tuning_operator.core.lease import HOLD_SECONDS, LEASE_SECONDS, Lease

Raw = dict[str, Any]


@dataclass
class Api:
    """The API server's Lease object; `before` and `after` a request something may happen, such as a lost answer."""

    now: float = 100.0
    lease: Raw | None = None
    version: int = 0
    before: Callable[[str], None] = lambda verb: None
    after: Callable[[str], None] = lambda verb: None
    log: list[str] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def read_lease(self, namespace: str, name: str) -> Raw | None:
        return self._do("read", lambda: copy.deepcopy(self.lease))

    async def create_lease(self, namespace: str, body: Raw) -> Raw:
        def create() -> None:
            if self.lease is not None:
                raise AlreadyExists("there is one")
            self._put(body)

        return self._do("create", create)

    async def replace_lease(self, namespace: str, name: str, body: Raw) -> Raw:
        def replace() -> None:
            assert self.lease is not None
            if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
                raise Conflict("changed since")
            self._put(body)

        return self._do("replace", replace)

    def _put(self, body: Raw) -> None:
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)

    def _do(self, verb: str, act: Callable[[], Any]) -> Any:
        self.before(verb)
        done = act()
        self.log.append(verb)
        self.after(verb)
        return done

    def holder(self, identity: str) -> Lease:
        return Lease(self, "llm-tuning", "operator", identity, clock=self.clock)

    @property
    def spec(self) -> Raw:
        assert self.lease is not None
        return dict(self.lease["spec"])


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    async def sleep(seconds: float) -> None:
        api.now += seconds
        await real(0)

    real = asyncio.sleep
    monkeypatch.setattr(module.asyncio, "sleep", sleep)


async def test_the_first_one_gets_it_and_may_write(api: Api) -> None:
    lease = api.holder("a")
    with pytest.raises(LeaseLost, match="not held by a"):
        lease.check()
    await lease.acquire()
    lease.check()
    assert api.spec["holderIdentity"] == "a"
    assert api.spec["leaseTransitions"] == 0


async def test_a_second_one_waits_until_the_first_has_not_renewed_for_its_time(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    await first.acquire()
    taken = api.now
    await second.acquire()
    assert api.now - taken > LEASE_SECONDS
    assert not first.held()
    assert api.spec["holderIdentity"] == "b"
    assert api.spec["leaseTransitions"] == 1


async def test_a_holder_that_renews_is_never_taken_over_from(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    await first.acquire()
    for _ in range(50):
        api.now += 2
        assert await first._try()
        assert not await second._try()
        assert first.held()


async def test_a_paused_holder_finds_its_time_over(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    await first.acquire()
    await second.acquire()  # so long a pause
    with pytest.raises(LeaseLost):
        first.check()
    with pytest.raises(LeaseLost):
        await first.hold()
    second.check()


async def test_a_holder_that_is_paused_in_the_middle_of_a_renewal_loses(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    await first.acquire()
    taken: list[bool] = []

    def pause(verb: str) -> None:
        if verb == "replace" and not taken:
            taken.append(True)
            api.lease = {**(api.lease or {}), "spec": {**api.spec, "holderIdentity": "b"}}
            api.version += 1
            api.lease["metadata"] = {**api.lease["metadata"], "resourceVersion": str(api.version)}
            api.now += LEASE_SECONDS + 1

    api.before = pause
    with pytest.raises(LeaseLost):
        await first.hold()
    assert api.spec["holderIdentity"] == "b"
    assert await second._try()


async def test_time_counts_from_before_the_renewal_was_sent(api: Api) -> None:
    lease = api.holder("a")

    def slow(verb: str) -> None:
        api.now += 4

    api.after = slow
    await lease._try()
    assert lease._held_until == 100 + HOLD_SECONDS


async def test_an_answer_that_took_too_long_gives_no_lease(api: Api) -> None:
    lease = api.holder("a")

    def slow(verb: str) -> None:
        api.now += 11 if len(api.log) == 2 else 0

    api.after = slow
    assert not await lease._try()
    assert not lease.held()
    await lease.acquire()
    lease.check()


async def test_a_lost_answer_is_found_out_by_the_next_look(api: Api) -> None:
    def lose(verb: str) -> None:
        if len(api.log) == 2:
            raise Unavailable("no answer")

    api.after = lose
    lease = api.holder("a")
    assert not await lease._try()
    assert not lease.held()
    assert await lease._try()
    assert api.spec["holderIdentity"] == "a"


async def test_without_an_api_server_the_holder_stops_writing_before_its_time_is_over(api: Api) -> None:
    lease = api.holder("a")
    await lease.acquire()
    began = api.now

    def away(verb: str) -> None:
        raise Unavailable("no answer")

    api.before = away
    with pytest.raises(LeaseLost):
        await lease.hold()
    assert HOLD_SECONDS <= api.now - began < LEASE_SECONDS


async def test_a_short_outage_is_no_loss(api: Api) -> None:
    lease = api.holder("a")
    await lease.acquire()
    failures = 0

    def away(verb: str) -> None:
        nonlocal failures
        if failures < 3:
            failures += 1
            raise Unavailable("no answer")

    api.before = away
    holding = asyncio.create_task(lease.hold())
    for _ in range(50):
        await asyncio.tasks.sleep(0)
    assert not holding.done()
    holding.cancel()
    lease.check()


async def test_given_back_the_next_one_begins_at_once(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    await first.acquire()
    await first.release()
    assert not first.held()
    assert await second._try()


async def test_only_ones_own_lease_is_given_back(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    await first.acquire()
    await second.acquire()
    await first.release()
    assert api.spec["holderIdentity"] == "b"


async def test_a_lease_that_cannot_be_given_back_is_no_error(api: Api) -> None:
    lease = api.holder("a")
    await lease.acquire()

    def away(verb: str) -> None:
        raise Unavailable("no answer")

    api.before = away
    await lease.release()
    assert not lease.held()


async def test_a_pod_whose_container_started_again_goes_on_at_once(api: Api) -> None:
    await api.holder("pod-1").acquire()
    before = api.now
    await api.holder("pod-1").acquire()
    assert api.now == before


async def test_of_two_that_are_equally_fast_one_gets_it(api: Api) -> None:
    first, second = api.holder("a"), api.holder("b")
    together = await asyncio.gather(first._try(), second._try())
    assert sorted(together) == [False, True]


@pytest.mark.parametrize("seed", range(30))
async def test_two_never_overlap(api: Api, seed: int) -> None:
    """Three processes that are paused anywhere, whose requests are slow, lost before or lost after they were done."""
    rng = random.Random(seed)
    leases = [api.holder(name) for name in "abc"]
    had: set[str] = set()

    def trouble(verb: str) -> None:
        api.now += rng.choice([0, 0.1, 1, 5, 12, 20]) if rng.random() < 0.3 else 0.05
        alone()
        if rng.random() < 0.1:
            raise Unavailable("no answer")

    def alone() -> None:
        holders = [lease.identity for lease in leases if lease.held()]
        had.update(holders)
        assert len(holders) <= 1, holders

    api.before = api.after = trouble
    awake = dict.fromkeys("abc", 0.0)
    for _ in range(400):
        api.now += 1
        for lease in leases:
            if api.now < awake[lease.identity]:
                continue
            if rng.random() < 0.05:
                awake[lease.identity] = api.now + rng.uniform(1, 60)
            elif lease.held() and rng.random() < 0.02:
                await lease.release()
            else:
                await lease._try()
            alone()
    assert len(had) > 1
