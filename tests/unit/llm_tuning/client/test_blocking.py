"""The synchronous client's loop: an interrupt reaches who waits for it, whichever thread the signal found."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading

import pytest

from llm_tuning.client.blocking import Loop


@pytest.mark.timeout(20)
def test_an_interrupt_that_wakes_no_wait_is_obeyed_all_the_same() -> None:
    """As when it comes between the last look at signals and the start of the wait: no call is cut short by it."""
    loop, cancelled, main = Loop(), threading.Event(), threading.get_ident()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it

    async def interrupted() -> None:
        while sys._current_frames()[main].f_code.co_name != "wait":
            await asyncio.sleep(0.01)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(interrupted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert cancelled.wait(5)
    loop.stop()


def test_a_timeout_of_what_is_awaited_is_no_pause_of_the_waiting() -> None:
    loop = Loop()

    async def too_late() -> None:
        await asyncio.wait_for(asyncio.sleep(3600), 0.01)

    with pytest.raises(TimeoutError):
        loop.run(too_late())
    loop.stop()
