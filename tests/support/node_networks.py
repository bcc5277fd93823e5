"""Network namespaces that stand for pods: each with an address of its own on one bridge, which can be cut and joined.

All of it, the bridge too, lies in namespaces of the test's own and goes with them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.missing import skip_or_fail


@dataclass(frozen=True)
class Networks:
    """So many pods on one bridge, each reached by the others at its address."""

    name: str
    count: int

    @property
    def addresses(self) -> list[str]:
        return [f"10.88.0.{index + 1}" for index in range(self.count)]

    def command(self, index: int) -> list[str]:
        """What stands before a command that is to run in this pod's network."""
        return ["ip", "netns", "exec", self.space(index)]

    def cut(self, index: int) -> None:
        """Pull the cable: nothing comes or goes, and nobody is told."""
        _run("ip", "-n", self.space("hub"), "link", "set", f"pod{index}", "down")

    def join(self, index: int) -> None:
        """Put it back."""
        _run("ip", "-n", self.space("hub"), "link", "set", f"pod{index}", "up")

    def drop_all_but(self, index: int, port: int) -> None:
        """Have the pod's network lose all of TCP that comes in but of this port, as a firewall does."""
        rule = ["-p", "tcp", "-j", "DROP"]
        open_ = [[side, str(port), "-j", "RETURN"] for side in ("--sport", "--dport")]
        for rest in open_:
            _run(*self.command(index), "iptables", "-A", "INPUT", "-p", "tcp", *rest)
        _run(*self.command(index), "iptables", "-A", "INPUT", *rule)

    def drop_nothing(self, index: int) -> None:
        """Take those rules back."""
        _run(*self.command(index), "iptables", "-F", "INPUT")

    def space(self, which: int | str) -> str:
        """The name of a namespace."""
        return f"{self.name}-{which}"


@contextmanager
def networks(count: int) -> Iterator[Networks]:
    """Networks for so many pods. Skips where the system allows none, and fails there in CI."""
    made = Networks(f"nodes-{os.getpid()}", count)
    spaces = [made.space("hub"), *(made.space(index) for index in range(count))]
    try:
        try:
            _make(made, spaces)
        except (OSError, subprocess.CalledProcessError) as error:
            skip_or_fail(f"needs root and `ip netns`: {getattr(error, 'stderr', None) or error}")
        yield made
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


def _make(made: Networks, spaces: list[str]) -> None:
    for space in spaces:
        _run("ip", "netns", "add", space)
        _run("ip", "-n", space, "link", "set", "lo", "up")
    hub = spaces[0]
    _run("ip", "-n", hub, "link", "add", "bridge", "type", "bridge")
    _run("ip", "-n", hub, "link", "set", "bridge", "up")
    for index, (space, address) in enumerate(zip(spaces[1:], made.addresses, strict=True)):
        end = ["type", "veth", "peer", "name", "eth0", "netns", space]
        _run("ip", "-n", hub, "link", "add", f"pod{index}", *end)
        _run("ip", "-n", hub, "link", "set", f"pod{index}", "master", "bridge", "up")
        _run("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
