"""What to do when the GPU has no room for the tokens that go through the model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.errors import InputError, Problem


@contextmanager
def out_of_memory_explained(training: TrainingSpec, device: str, max_tokens: int) -> Iterator[None]:
    """Turn the GPU running out of memory in the block into an InputError that says what to set.

    `max_tokens` is what training.maxTokensPerPass has come to.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        ways = [f"set training.maxTokensPerPass below {max_tokens}"]
        if not training.gradient_checkpointing:
            ways.append("training.gradientCheckpointing to true")
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        raise InputError(
            Problem(
                "training.maxTokensPerPass",
                f"is {max_tokens}, for which the {total:.0f} GiB of {device} are not enough",
                " or ".join(ways) + "; a row longer than that is limited by training.maxLength alone",
            )
        ) from None
