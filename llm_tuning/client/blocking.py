"""What the generated `client.sync` stands on: an event loop in a thread, and the calls that open and close a client.

So it works in scripts and in notebooks, whose main thread has a loop that runs already, and there is one client only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Self, TypeVar

from llm_tuning.client.aio import AsyncTuningClient
from llm_tuning.client.connection import Connection
from llm_tuning.client.logs import LossPoint
from llm_tuning.client.objects import TuningJobView
from llm_tuning.errors import TuningError

T = TypeVar("T")

DISPLAY_SECONDS = 5.0
"""How long showing an object waits for its loss curve."""
INTERRUPT_SECONDS = 0.5
"""How long a call may take to notice Ctrl-C: a signal cuts a wait short only if it comes after the wait has begun, and
one that comes a moment earlier is seen when the wait ends."""


class Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm-tuning-client", daemon=True)
        self._thread.start()

    def run(self, awaitable: Awaitable[T]) -> T:
        """Return what `awaitable` gives; when the caller is interrupted, it is cancelled."""

        async def wait() -> T:
            return await awaitable

        future = asyncio.run_coroutine_threadsafe(wait(), self._loop)
        try:
            while not future.done():
                concurrent.futures.wait([future], INTERRUPT_SECONDS)
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, source: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield what `source` gives, one after the other; it is closed when the caller leaves."""
        try:
            while True:
                try:
                    yield self.run(anext(source))
                except StopAsyncIteration:
                    return
        finally:
            self.run(source.aclose())

    def stop(self) -> None:
        """End the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


class Blocking:
    """An AsyncTuningClient and the loop that it runs on."""

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        connection: Connection | None = None,
    ) -> None:
        """Connect, by default as kubectl would or as the pod this runs in; see Connection.load."""
        self._client = AsyncTuningClient(
            namespace=namespace, context=context, kubeconfig=kubeconfig, connection=connection
        )
        self._loop = Loop()

    @property
    def namespace(self) -> str:
        """The namespace of all objects that this client makes and finds."""
        return self._client.namespace

    def close(self) -> None:
        """Close the connections and end the thread. A program that ends needs not call it."""
        self._loop.run(self._client.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _curve(self, job: TuningJobView) -> Sequence[LossPoint]:
        """Read the loss curve that a notebook shows; empty where it cannot be had quickly."""
        try:
            return self._loop.run(asyncio.wait_for(self._client.losses(job.name), DISPLAY_SECONDS))
        except (TuningError, TimeoutError):
            return ()
