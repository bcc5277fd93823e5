"""Copies to and from a run's device for which neither of the two waits more than it must.

A GPU works through a queue that the host fills ahead. A copy from ordinary memory, or of a number to the host, waits
for all of the queue; then the GPU waits for the host to fill it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def to_device(device: str | torch.device, *tensors: Tensor) -> list[Tensor]:
    """Copy CPU tensors of one dtype to `device`; to a GPU all in one copy, which the host does not wait for."""
    if torch.device(device).type == "cpu":
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in tensors]).pin_memory()
    parts = flat.to(device, non_blocking=True).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item once the next one is made, so that its numbers are read while a GPU works on the next."""
    made: list[T] = []
    for item in items:
        made.append(item)
        if len(made) == 2:
            yield made.pop(0)
    yield from made
