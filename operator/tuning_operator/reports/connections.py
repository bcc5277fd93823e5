"""Accept TLS connections so that no number of them fills the operator's memory or keeps its loop from the Lease.

Any pod of the cluster can open them, and a handshake comes before anything is known of who does: it costs memory and a
millisecond. So those whose sender is not known yet are bounded, all and by address, and the oldest gives way to the
newest: whoever means to report does it within some milliseconds, and whoever lingers loses. An address that comes
again and again is closed before the handshake. Connections are accepted one at a time, with a turn of the loop for
everything else in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from tuning_operator.reports.rate_limit import RateLimit

log = logging.getLogger(__name__)

MAX_UNKNOWN = 200
"""Connections at once of senders that are not known yet: about 20 MB."""
MAX_UNKNOWN_OF_ADDRESS = 64
"""Of one client's address. A pod needs one; behind a gateway several share an address."""
HANDSHAKES_PER_SECOND = 50.0
"""Of one address: a trainer makes one in five seconds."""
READ_BUFFER_BYTES = 2**16
"""Of a TLS connection, which asyncio takes when it is accepted: 256 KiB are nine tenths of what one costs. A record of
TLS has 16 KiB at most."""
HANDSHAKE_SECONDS = 5.0
SHUTDOWN_SECONDS = 1.0
BACKLOG = 256
"""What waits in the kernel, without any memory of ours."""
NO_FILES_SECONDS = 1.0
"""Where the process has no file descriptor left."""


@dataclass(eq=False)
class _Connection:
    """One from its acceptance until its sender is known or it is closed."""

    address: str
    task: asyncio.Task[None] | None = None
    """Its handshake, until that is done."""
    handler: web.RequestHandler | None = None

    @property
    def is_open(self) -> bool:
        if self.handler is not None:
            return self.handler.transport is not None
        return self.task is not None and not self.task.done()

    def close(self) -> None:
        if self.handler is not None and isinstance(self.handler.transport, asyncio.Transport):
            self.handler.transport.abort()
        elif self.task is not None:
            self.task.cancel()


@dataclass
class Connections:
    """`listen`, then `accept` until cancelled; `close` ends those that are left. `known` is for verified senders."""

    factory: Callable[[], web.RequestHandler]
    ssl_context: ssl.SSLContext
    limit: RateLimit = field(
        default_factory=lambda: RateLimit(burst=MAX_UNKNOWN_OF_ADDRESS, per_second=HANDSHAKES_PER_SECOND)
    )
    """By address."""
    _unknown: dict[_Connection, None] = field(default_factory=dict)
    """Oldest first."""
    _listener: socket.socket | None = None

    def listen(self, host: str | None, port: int) -> int:
        """Open the port, on all addresses where `host` is None; returns the real one."""
        sslproto.SSLProtocol.max_size = READ_BUFFER_BYTES  # asyncio has no argument for it
        self._listener = _listening(host, port)
        self._listener.setblocking(False)
        return int(self._listener.getsockname()[1])

    async def accept(self) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                accepted, address = await loop.sock_accept(self._listener)
            except ConnectionError:
                continue
            except OSError as error:
                log.warning("no connection can be accepted: %s", error.strerror)
                await asyncio.sleep(NO_FILES_SECONDS)
                continue
            connection = _Connection(str(address[0]))
            if not self.limit.allows(connection.address):
                accepted.close()
                await asyncio.sleep(0)
                continue
            self._make_room(connection.address)
            self._unknown[connection] = None
            connection.task = loop.create_task(self._shake_hands(connection, accepted))
            await asyncio.sleep(0)

    async def _shake_hands(self, connection: _Connection, accepted: socket.socket) -> None:
        """Do the TLS handshake; what follows on the connection is the request handler's."""
        try:
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                self.factory,
                accepted,
                ssl=self.ssl_context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
            connection.handler = protocol
        except OSError:  # a client that speaks no TLS, left or was too slow
            self._unknown.pop(connection, None)

    def _make_room(self, address: str) -> None:
        """Close the oldest where one more would be too many."""
        for connection in [connection for connection in self._unknown if not connection.is_open]:
            del self._unknown[connection]
        same = [connection for connection in self._unknown if connection.address == address]
        if len(same) >= MAX_UNKNOWN_OF_ADDRESS:
            self._evict(same[0])
        elif len(self._unknown) >= MAX_UNKNOWN:
            self._evict(next(iter(self._unknown)))

    def _evict(self, connection: _Connection) -> None:
        del self._unknown[connection]
        connection.close()

    def known(self, handler: object) -> None:
        """Stop counting a connection whose sender has shown a token: those are bounded in number and pace by pod."""
        for connection in self._unknown:
            if connection.handler is handler:
                del self._unknown[connection]
                return

    def close(self) -> None:
        """Stop listening, and end what is in the middle of its handshake."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._unknown):
            connection.close()
        self._unknown.clear()


def _listening(host: str | None, port: int) -> socket.socket:
    if host is None:
        with contextlib.suppress(OSError, ValueError):  # a node without IPv6
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG, reuse_port=False
            )
    family = socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET
    return socket.create_server((host or "", port), family=family, backlog=BACKLOG)
