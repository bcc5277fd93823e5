"""Reports this pod's adapters to the operator, and receives what is wanted in the answer.

The operator holds the answer back until something else is wanted, for at most 15 s; what changes here meanwhile is
reported at once. While no operator answers, nothing changes.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from llm_tuning.agent.contract import CA_FILE, CONFIG_DIR, REPORT_SECONDS, TOKEN_FILE, DesiredRoutes, parse_desired
from llm_tuning.agent.keeper import Keeper
from llm_tuning.core.ca import trusting
from llm_tuning.errors import InputError

log = logging.getLogger(__name__)

ANSWER_SECONDS = REPORT_SECONDS + 10.0
GATHER_SECONDS = 0.25
"""Changes come in groups: an adapter is loaded, then proven."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 15.0


@dataclass
class Reporter:
    """`run` works until cancelled."""

    keeper: Keeper
    session: aiohttp.ClientSession
    url: str
    token_file: Path = TOKEN_FILE
    ca_file: Path = CONFIG_DIR / CA_FILE
    locked: bool = False
    """Of the server: no key could be right."""
    _tls: tuple[int, ssl.SSLContext] | None = None
    _failing: bool = False
    _retry_seconds: float = field(default=FIRST_RETRY_SECONDS)

    async def run(self) -> None:
        while True:
            self.keeper.changed.clear()
            asked = asyncio.create_task(self._ask())
            news = asyncio.create_task(self.keeper.changed.wait())
            try:
                await asyncio.wait({asked, news}, return_when=asyncio.FIRST_COMPLETED)
                if not asked.done():
                    await asyncio.sleep(GATHER_SECONDS)
            finally:
                for task in (asked, news):
                    if not task.done():
                        task.cancel()
                await asyncio.gather(asked, news, return_exceptions=True)
            if not asked.cancelled():
                await self._after(asked)

    async def _after(self, asked: asyncio.Task[DesiredRoutes | None]) -> None:
        """Take the answer, or wait before the next try: longer each time, and no longer than a report takes."""
        error = asked.exception()
        if error is None:
            if self._failing:
                log.info("the operator answers again")
            self._failing, self._retry_seconds = False, FIRST_RETRY_SECONDS
            desired = asked.result()
            if desired is not None and desired == self.keeper.desired:
                # An operator of another version, to which the same looks different: it would answer at once for ever.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.keeper.changed.wait(), REPORT_SECONDS)
            elif desired is not None:
                self.keeper.want(desired)
            return
        if not isinstance(error, aiohttp.ClientError | OSError | TimeoutError | InputError | ValueError):
            raise error
        if not self._failing:
            log.warning("the operator does not take reports (%s: %s); serving continues", type(error).__name__, error)
        self._failing = True
        await asyncio.sleep(self._retry_seconds)
        self._retry_seconds = min(self._retry_seconds * 2, LAST_RETRY_SECONDS)

    async def _ask(self) -> DesiredRoutes | None:
        """Send one report; return the routes that are wanted instead, or None for no change."""
        body = self.keeper.report().model_copy(update={"locked": self.locked}).encode().encode()
        token = self.token_file.read_text().strip()  # each time: the kubelet renews it
        async with self.session.post(
            self.url,
            data=body,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            ssl=self._context(),
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=5),
        ) as answer:
            text = await answer.read()
            if answer.status == 204:
                return None
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {text[:200].decode(errors='replace')}")
            return parse_desired(text)

    def _context(self) -> ssl.SSLContext:
        """Build a TLS context for the operator's CA of now; the kubelet brings a new one within a minute or two."""
        version = self.ca_file.stat().st_mtime_ns
        if self._tls is None or self._tls[0] != version:
            self._tls = (version, trusting(self.ca_file))
        return self._tls[1]
