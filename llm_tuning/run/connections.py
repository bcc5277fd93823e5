"""The TCP connections of this pod, and which of them have gone silent, as the kernel counts it. Torch-free.

A network that is cut takes its connections along without a word: who waits for data waits on, and the kernel itself
gives up after a quarter of an hour. But the kernel does know: what it sends again and again, nobody acknowledges. A
process that is slow, or stopped, is another matter, since the kernel of its machine acknowledges for it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""Of this pod's network alone; not there under some sandboxes, where nothing is found silent."""
ESTABLISHED = "01"


@dataclass(frozen=True)
class Connection:
    """One end of an established connection."""

    key: tuple[str, str, str]
    local: str
    remote: str
    """Addresses without ports; IPv4 in its own form also where it is mapped into IPv6."""
    unanswered: int
    """How often the kernel has sent the same again, or asked whether there is room, since anything was acknowledged."""


@dataclass
class _Silence:
    since: float
    unanswered: int


class Connections:
    """The connections of this pod, seen from time to time."""

    def __init__(self, tables: Iterable[Path] = TABLES) -> None:
        self._tables = tuple(tables)
        self._silent: dict[tuple[str, str, str], _Silence] = {}
        self._remote: dict[tuple[str, str, str], str] = {}
        self.own: frozenset[str] = frozenset()
        """Addresses of this pod at which connections have been seen, loopback left out."""

    def look(self, now: float) -> None:
        """Read the kernel's tables of `now`."""
        seen = [connection for table in self._tables for connection in _read(table)]
        self.own |= {each.local for each in seen if not ipaddress.ip_address(each.local).is_loopback}
        silent = {}
        for each in seen:
            before = self._silent.get(each.key)
            if each.unanswered:
                is_same = before is not None and each.unanswered >= before.unanswered
                since = before.since if before is not None and is_same else now
                silent[each.key] = _Silence(since, each.unanswered)
        self._silent, self._remote = silent, {each.key: each.remote for each in seen}

    def silent_for(self, addresses: Iterable[str], now: float) -> float:
        """Return how many seconds the longest silent connection to one of `addresses` has been so; 0 for none."""
        wanted = set(addresses) - self.own
        since = [silence.since for key, silence in self._silent.items() if self._remote[key] in wanted]
        return now - min(since, default=now)


def _read(table: Path) -> list[Connection]:
    found = []
    with suppress(OSError):
        for line in table.read_text(errors="replace").splitlines()[1:]:
            with suppress(ValueError):  # a line that cannot be read says nothing of the others
                found.append(_parse(line.split()))
    return [connection for connection in found if connection is not None]


def _parse(columns: list[str]) -> Connection | None:
    """Parse a line: number, local, remote, state, queues, timer, times sent again, uid, probes, inode, ..."""
    if len(columns) < 10 or columns[3] != ESTABLISHED:
        return None
    local, remote = columns[1], columns[2]
    unanswered = int(columns[6], 16) + int(columns[8])
    return Connection((local, remote, columns[9]), _address(local), _address(remote), unanswered)


def _address(text: str) -> str:
    """Return the address in `0100007F:1F90`: words of four bytes, each in the order of this machine."""
    digits = text.partition(":")[0]
    words = [bytes.fromhex(digits[at : at + 8]) for at in range(0, len(digits), 8)]
    found = ipaddress.ip_address(b"".join(word[::-1] for word in words))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)
