"""Over how many ranks a frozen base is divided: what `training.sharding` comes to. Torch-free.

The plan asks for each size of GPU, and a run for its own, by the same formulas (`run.memory`). A copy of the base is
divided over the ranks of one node where they have room for it, and each node has a copy: gathering stays on the node's
own links, and nothing of the base crosses the network, since it is frozen. Where they have not, all ranks share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LEFT_FREE = 0.1
"""Of a GPU's memory, by which the estimate may be too low before `auto` divides the base."""
GIB = 2**30


@dataclass(frozen=True)
class Division:
    """How many ranks share a copy of the base, and why so many."""

    shards: int
    """1: each rank has all of the base."""
    ranks: int
    why: str

    @property
    def copies(self) -> int:
        return self.ranks // self.shards

    def __str__(self) -> str:
        return f"base {self.how} ({self.why})"

    @property
    def how(self) -> str:
        """Where the base is, in words."""
        if self.shards == 1:
            return "whole on each rank"
        return f"in {self.shards} parts" + (f" on each of {self.copies} nodes" if self.copies > 1 else "")


def divide(
    asked: str, takes: Callable[[int], int], *, room: int | None, processes: int, nodes: int, four_bits: bool = False
) -> Division:
    """Return what `training.sharding` comes to on ranks whose smallest device has `room` bytes.

    `takes` estimates the bytes of a rank by the number of those that share a copy of the base. Without `room`, on CPUs
    (whose ranks share the memory of a machine), `auto` divides nothing, and `full` within a node where it has several
    ranks.
    """
    ranks = processes * nodes
    over = [shards for shards in dict.fromkeys((processes, ranks)) if shards > 1]

    def whole(why: str) -> Division:
        return Division(1, ranks, why)

    if asked == "none" or not over:
        return whole("as asked for" if asked == "none" else "there is one")
    if asked == "auto" and four_bits:
        return whole("in 4 bits it is not divided")
    if room is None:
        return whole("auto divides nothing on CPUs") if asked == "auto" else Division(over[0], ranks, "as asked for")

    def fits(shards: int) -> bool:
        return takes(shards) <= (1 - LEFT_FREE) * room

    by_estimate = f"by estimate {takes(1) / GIB:.1f} of a GPU's {room / GIB:.1f} GiB"
    if asked == "auto" and fits(1):
        return whole(by_estimate)
    shards = next((shards for shards in over if fits(shards)), over[-1])
    if asked == "auto" and takes(shards) >= takes(1):
        return whole(f"{by_estimate}, and parts take no less")
    so = f"by estimate {takes(shards) / GIB:.1f} of a GPU's {room / GIB:.1f} GiB"
    return Division(shards, ranks, so if asked == "full" else f"{so}, and whole {takes(1) / GIB:.1f}")
