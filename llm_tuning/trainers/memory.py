"""What to do when the GPU has no room for the tokens that go through the model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.errors import InputError, Problem
from llm_tuning.run.devices import tokens_per_pass


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
