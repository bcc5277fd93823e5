"""End tasks that may lose a cancellation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
"""More than a task takes that ends in order."""


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel `tasks` and wait for all of them, whatever they end with; who goes on is cancelled again, and again.

    A task loses a cancellation where what it awaits times out at that moment, as all that has a time does in a process
    that was paused: an operator that has lost its Lease then would stay, and the replica beside it have no successor.
    """
    going = set(tasks)
    while going:
        for task in going:
            task.cancel()
        ended, going = await asyncio.wait(going, timeout=AGAIN_SECONDS)
        for task in ended:
            if not task.cancelled():
                task.exception()  # taken note of, or asyncio would complain that nobody has
        for task in going:
            log.warning("cancelled again, as it has not ended within %.0f s: %s", AGAIN_SECONDS, task.get_coro())
