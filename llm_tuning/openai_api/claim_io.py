"""Calls that read or write the claim, on threads of their own: a claim may hang, for all that stands on its network.

asyncio's own threads look up names, and those of anyio serve downloads. With either full, nobody could chat.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16
"""So many calls wait for the claim at a time; more wait for those."""

_EXECUTOR = ThreadPoolExecutor(THREADS, thread_name_prefix="claim")


async def on_claim(function: Callable[P, T], *given: P.args, **how: P.kwargs) -> T:
    """Call a function that may block on the claim, beside the event loop."""
    call = partial(contextvars.copy_context().run, function, *given, **how)
    return await asyncio.get_running_loop().run_in_executor(_EXECUTOR, call)
