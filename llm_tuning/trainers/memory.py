"""The failures of a GPU during a run: memory that ran out, and a card that is lost.

Whether a retry may cure it decides what is raised. Memory that other processes hold comes back, and a failed card is
another one on the next node: TryAgain. What does not fit on the card even alone never will: InputError, with the stage
that it ran out in, what held the memory, and what to set. The probes alone end no run for it: see `probes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import torch

from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.models.base import inspect_base
from llm_tuning.run.context import TrainRun
from llm_tuning.run.devices import gpus_in_words
from llm_tuning.trainers.gpu import REASON, first_line


class Stage(StrEnum):
    """What a run was doing."""

    LOADING = "while loading the base"
    TRAINING = "in training"
    EVALUATION = "in evaluation"
    PROBES = "while scoring the probes"


NO_ROOM = re.compile(
    r"CUDA out of memory|CU(BLAS|DNN|SPARSE|SOLVER)_STATUS_ALLOC_FAILED"
    r"|(CUDA (driver )?error|Cuda failure).*out of memory|Failed to CUDA (host )?[cm]alloc"
)
"""In the words of torch, of the libraries that it computes with, of the driver, and of NCCL."""

LOST = {46, 100, 101, 214, 220, 802, 999}
"""Numbers of cudaError_t that speak of the card and not of what ran on it: unavailable, no device, invalid device,
uncorrectable ECC, uncorrectable NVLink, system not ready, unknown (as after it fell off the bus)."""

UNCOUNTED = 1 << 30
"""Bytes of this process that torch's allocator does not count: the CUDA context with its kernels; by estimate."""
UNCOUNTED_BY_NCCL = 1 << 30
"""As much again for the buffers of a run with several GPUs."""
LEAST_OTHERS = 1 << 28
"""Bytes; less than this may be what these estimates miss of the run itself."""


@dataclass(frozen=True)
class Memory:
    """Who held a card's memory when it ran out, in bytes."""

    total: int
    own: int
    others: int
    wanted: int
    """What did not fit; 0 where that is not known."""

    @property
    def is_passing(self) -> bool:
        """Whether the run would have had room without the others."""
        return self.others >= LEAST_OTHERS and self.own + self.wanted <= self.total

    def __str__(self) -> str:
        held = f"{_gib(self.total)}, of which this run held {_gib(self.own)}"
        others = f" and other processes {_gib(self.others)}" if self.others >= LEAST_OTHERS else ""
        wanted = f"; {_gib(self.wanted)} more was wanted" if self.wanted else ""
        return held + others + wanted


@contextmanager
def gpu_errors_explained(run: TrainRun, stage: Stage) -> Iterator[None]:
    """Turn a failure of the GPU in the block into a TryAgain or an InputError; the innermost block's stage is named."""
    try:
        yield
    except TryAgain:
        raise
    except RuntimeError as error:  # torch's own errors of an accelerator are of this type
        is_lost = getattr(error, "error_code", None) in LOST
        if not (is_lost or out_of_memory(error)):
            raise
        gpu = gpus_in_words([run.spec.devices[run.rank]])
        if is_lost:
            raise TryAgain(REASON, f"{gpu} failed {stage}: {first_line(error)}") from error
        memory = memory_at(error, run)
        if memory is not None and memory.is_passing:
            end = "they have to end, or the run needs another GPU"
            raise TryAgain(REASON, f"{gpu} ran out of memory {stage} ({memory}): {end}") from error
        ran_out = f"{gpu} ran out of memory {stage}" + (f" ({memory})" if memory else "")
        raise InputError(_what_to_set(run, stage, ran_out, memory)) from error


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether this error says that the GPU's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or NO_ROOM.search(str(error)) is not None


def memory_at(error: RuntimeError, run: TrainRun) -> Memory | None:
    """Return who holds the memory of the run's card; None where it does not say.

    What tensors of the failed step free stays in torch's cache, so that this is still the division at the failure.
    """
    try:
        free, total = torch.cuda.mem_get_info(run.device)
        reserved = torch.cuda.memory_reserved(run.device)
    except (RuntimeError, AssertionError, ValueError):
        return None
    own = min(reserved + UNCOUNTED + (UNCOUNTED_BY_NCCL if run.world > 1 else 0), total - free)
    found = re.search(r"Tried to allocate ([\d.]+) ([KMG])iB", str(error))
    wanted = int(float(found[1]) * 1024 ** (1 + "KMG".index(found[2]))) if found else 0
    still_to_load = _least_weights(run) - reserved
    return Memory(total, own, total - free - own, max(wanted, still_to_load))


def _what_to_set(run: TrainRun, stage: Stage, ran_out: str, memory: Memory | None) -> Problem:
    training, quantization = run.config.training, run.config.model.quantization
    smaller = [] if quantization == "4bit" or run.is_sharded else ["{set:model.quantization=4bit}"]
    if smaller and run.world > 1:
        smaller.insert(0, "{set:training.sharding=full}")
    if stage is Stage.LOADING:
        ways = [*smaller, "use a GPU with more memory", "a smaller base"]
        return Problem("model.quantization", f"is {quantization}, with which {ran_out}", " or ".join(ways))
    now = run.tokens_per_pass
    ways = [f"{{set:training.max_tokens_per_pass={max(1, now // 2)}}}"]
    if stage is Stage.TRAINING and not training.gradient_checkpointing:
        ways.append("{set:training.gradient_checkpointing=true}")
    if memory is not None and _least_weights(run) > memory.total / 2:
        ways += smaller
    fix = " or ".join(ways) + "; a row longer than a pass is limited by {field:training.max_length} alone"
    return Problem("training.maxTokensPerPass", f"is {now}, with which {ran_out}", fix)


def _least_weights(run: TrainRun) -> int:
    """Return the bytes that this rank's weights of the base take at least."""
    parameters = inspect_base(run.base).parameters // run.shards
    return parameters // 2 if run.config.model.quantization == "4bit" else 2 * parameters


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
