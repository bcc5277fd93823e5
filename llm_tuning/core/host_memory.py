"""How much memory of the host this process may still take, in a container with a limit too."""

from __future__ import annotations

from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit, use, statistics and the entry of reclaimable file pages in them: of cgroups in version 2, and in version 1."""


def free_host_bytes(cgroups: Path = CGROUPS) -> int:
    """Return the bytes available on the host, caches included, or below the limit of this container if that is less."""
    available = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
    free = [int(available.split()[1]) * 1024]
    for limit, used, statistics, reclaimable in _FILES:
        try:
            left = int((cgroups / limit).read_text()) - int((cgroups / used).read_text())
            entries = dict(line.split() for line in (cgroups / statistics).read_text().splitlines())
            free.append(left + int(entries.get(reclaimable, 0)))
        except (OSError, ValueError):  # the other version; "max" is no limit
            continue
    return max(0, min(free))
