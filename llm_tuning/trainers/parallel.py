"""Everything this project asks of torch.distributed, which nobody else imports.

The collective operations that a recipe needs; with one process each of them is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""A rank that waits longer than this for the others fails instead of hanging: no step takes ten minutes."""


@contextmanager
def process_group(rendezvous: Path, *, rank: int, world: int, device: str) -> Iterator[None]:
    """Join the run's process group while the block runs: gloo on the CPU, NCCL on GPUs; nothing with one process.

    `rendezvous` is a file on the run's folder: no port that another job may hold.
    """
    if world == 1:
        yield
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{rendezvous.resolve()}",
        rank=rank,
        world_size=world,
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum `values` over all ranks, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, device: str = "cpu") -> bool:
    """Whether any rank raised its flag: all ranks get the same answer, so they leave a loop at the same step."""
    if not dist.is_initialized():
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag), device=device)).item())


def gather_objects(value: T) -> list[T]:
    """Return every rank's `value`, in the order of the ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return cast("list[T]", values)
