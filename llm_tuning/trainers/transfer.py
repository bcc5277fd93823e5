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


def read_behind(passes: Iterable[tuple[T, Tensor]]) -> Iterator[tuple[T, Tensor]]:
    """Yield each pass with its numbers on the CPU, once the next pass is made: a GPU then works on that one.

    A copy takes its turn in the GPU's queue, so it is put there before the next pass.
    """
    made: list[tuple[T, Tensor, torch.Event | None]] = []
    for batch, numbers in passes:
        copy = numbers.to("cpu", non_blocking=True)
        done = torch.cuda.current_stream(numbers.device).record_event() if numbers.is_cuda else None
        made.append((batch, copy, done))
        if len(made) == 2:
            yield _when_there(*made.pop(0))
    for last in made:
        yield _when_there(*last)


def _when_there(batch: T, copy: Tensor, done: torch.Event | None) -> tuple[T, Tensor]:
    if done is not None:
        done.synchronize()
    return batch, copy
