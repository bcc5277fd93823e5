"""The queue of keys on a clock that stands still until it is set."""

from __future__ import annotations

import asyncio

import pytest

from tuning_operator.core.queue import LAST_RETRY_SECONDS, WorkQueue

A, B = ("team", "a"), ("team", "b")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock)


async def ready(queue: WorkQueue) -> list[tuple[str, str]]:
    """All keys that can be got now; each is done at once."""
    keys = []
    while True:
        try:
            key = await asyncio.wait_for(queue.get(), 0.01)
        except TimeoutError:
            return keys
        keys.append(key)
        queue.done(key)


async def test_a_key_that_is_added_often_is_got_once_in_its_place(queue: WorkQueue) -> None:
    for key in (A, B, A, A):
        queue.add(key)
    assert len(queue) == 2
    assert await ready(queue) == [A, B]


async def test_a_key_is_with_one_worker_at_a_time_and_comes_again_if_it_was_added_meanwhile(queue: WorkQueue) -> None:
    queue.add(A)
    assert await queue.get() == A
    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert await queue.get() == B
    assert len(queue) == 0
    queue.done(A)
    assert await ready(queue) == [A]


async def test_a_worker_that_waits_is_woken(queue: WorkQueue) -> None:
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add(A)
    assert await asyncio.wait_for(waiting, 1) == A


async def test_all_workers_that_wait_are_woken(queue: WorkQueue) -> None:
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in (A, B, ("team", "c")):
        queue.add(key)
    assert len(await asyncio.wait_for(asyncio.gather(*workers), 1)) == 3


async def test_a_worker_that_waits_wakes_by_the_clock() -> None:
    queue = WorkQueue()
    queue.add_after(A, 0.05)
    assert await asyncio.wait_for(queue.get(), 2) == A


async def test_a_shorter_wait_wakes_a_worker_that_waits_for_a_longer_one() -> None:
    queue = WorkQueue()
    queue.add_after(A, 60)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0.01)
    queue.add_after(B, 0.02)
    assert await asyncio.wait_for(waiting, 2) == B


async def test_later_means_later_and_the_earliest_time_counts(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 30)
    queue.add_after(A, 5)
    queue.add_after(A, 60)
    clock.now += 4
    assert await ready(queue) == []
    clock.now += 2
    assert await ready(queue) == [A]
    clock.now += 100
    assert await ready(queue) == [], "the later times were for the same look"


async def test_what_brings_a_key_earlier_takes_away_its_later_time(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 30)
    queue.add(A)
    assert await ready(queue) == [A]
    clock.now += 31
    assert await ready(queue) == []


async def test_a_time_that_is_set_while_a_worker_has_the_key_stays(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    await queue.get()
    queue.add_after(A, 5)
    queue.done(A)
    assert await ready(queue) == []
    clock.now += 6
    assert await ready(queue) == [A]


async def test_what_becomes_due_while_a_worker_has_the_key_comes_after(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    await queue.get()
    queue.add_after(A, 5)
    clock.now += 6
    assert await ready(queue) == []
    queue.done(A)
    assert await ready(queue) == [A]


async def test_retries_come_ever_more_slowly_up_to_a_minute_and_success_forgets(queue: WorkQueue) -> None:
    waits = [queue.retry(A) for _ in range(12)]
    assert waits[:4] == [0.5, 1, 2, 4]
    assert waits == sorted(waits)
    assert waits[-1] == LAST_RETRY_SECONDS
    assert queue.retry(B) == 0.5
    queue.forget(A)
    assert queue.retry(A) == 0.5


async def test_years_of_failures_overflow_nothing(queue: WorkQueue) -> None:
    for _ in range(5000):
        seconds = queue.retry(A)
    assert seconds == LAST_RETRY_SECONDS


async def test_times_that_were_overtaken_do_not_pile_up(queue: WorkQueue, clock: Clock) -> None:
    """A job that is looked at often sets a new time in each pass."""
    for _ in range(1000):
        queue.add(A)
        await queue.get()
        queue.add_after(A, 30)
        queue.done(A)
    assert len(queue._later) < 100


class Measured:
    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []

    def added(self) -> None:
        self.seen.append(("added", 0))

    def retried(self) -> None:
        self.seen.append(("retried", 0))

    def got(self, seconds: float) -> None:
        self.seen.append(("got", seconds))

    def done(self, seconds: float) -> None:
        self.seen.append(("done", seconds))


async def test_what_a_queue_measures() -> None:
    """As client-go's workqueue: an add that is merged into one before is none; time in the queue, then at work."""
    now, measured = [100.0], Measured()
    queue = WorkQueue(lambda: now[0], measured)
    queue.add(("team", "a"))
    queue.add(("team", "a"))
    now[0] += 3
    key = await queue.get()
    assert queue.busy_since == {key: 103.0}
    queue.add(key)
    now[0] += 2
    queue.retry(key)
    queue.done(key)
    assert measured.seen == [("added", 0), ("got", 3.0), ("retried", 0), ("done", 2.0), ("added", 0)]
    assert queue.busy_since == {}
