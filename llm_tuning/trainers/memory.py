"""How many tokens go through the model at a time, and what to do when the GPU has no room for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.errors import InputError, Problem

CPU_TOKENS = 2048
"""On a CPU larger passes gain nothing: a pass of this size already keeps the cores busy."""
CUDA_TOKENS = 4096
"""On a GPU; by estimate, not yet by measurement, room for a 7B base in bf16 on 80 GiB, or on 24 GiB with gradient
checkpointing. A fixed number and not one by free memory: where dropout is on, passes decide which numbers it draws."""


def tokens_per_pass(training: TrainingSpec, device: str) -> int:
    """`training.maxTokensPerPass`, or the default of the device: 2048 padded tokens on a CPU, 4096 on a GPU."""
    if training.max_tokens_per_pass is not None:
        return training.max_tokens_per_pass
    return CUDA_TOKENS if device.startswith("cuda") else CPU_TOKENS


@contextmanager
def out_of_memory_explained(training: TrainingSpec, device: str) -> Iterator[None]:
    """Turn the GPU running out of memory in the block into an InputError that says what to set."""
    try:
        yield
    except torch.OutOfMemoryError:
        now = tokens_per_pass(training, device)
        ways = [f"set training.maxTokensPerPass below {now}"]
        if not training.gradient_checkpointing:
            ways.append("training.gradientCheckpointing to true")
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        raise InputError(
            Problem(
                "training.maxTokensPerPass",
                f"is {now}, for which the {total:.0f} GiB of {device} are not enough",
                " or ".join(ways) + "; a row longer than that is limited by training.maxLength alone",
            )
        ) from None
