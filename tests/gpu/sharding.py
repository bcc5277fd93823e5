"""A base in parts, in a group of one: torch's FSDP2 with its streams and buffers, on the card that a run has.

What several cards do to each other needs several cards; that parts are loaded to the right device, come together before
they are used and are gone afterwards, one card tells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from llm_tuning.trainers.model import checkpoint_gradients, load_base_model
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.sharding import refuse_unless_it_runs
from tests.gpu.findings import Finding, Place, below, not_here
from tests.gpu.models import away, gradients, micro_batches, random_rows, with_lora
from tests.support.tiny_base import make_base

LENGTHS, VOCABULARY = [40, 17, 60, 29], 512


def sharding(place: Place) -> Iterator[Finding]:
    """Compare a step on a divided base with one on the whole base, checkpointed and not."""
    yield not_here("parts on several cards", "needs two GPUs: NCCL refuses two ranks on one card")
    base = make_base(place.scratch / "sharding" / "base", layers=3)
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "rendezvous"), 1)
        device_id = torch.device(place.device) if place.cuda else None
        backend = place.choose(cuda="nccl", cpu="gloo")
        if place.cuda:
            torch.cuda.set_device(place.device)
        dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device_id)
        try:
            for checkpointed in (False, True):
                yield from _against_whole(place, base, checkpointed=checkpointed)
        finally:
            dist.destroy_process_group()


def _against_whole(place: Place, base: Path, *, checkpointed: bool) -> Iterator[Finding]:
    name = "checkpointed" if checkpointed else "plain"
    (want_loss, want), (loss, got) = (
        _step(place, base, sharded=sharded, checkpointed=checkpointed) for sharded in (False, True)
    )
    yield below(f"{name}: loss off", abs(loss / want_loss - 1), 1e-5)
    yield below(f"{name}: gradients off", away(got, want), place.choose(cuda=1e-2, cpu=1e-6))


def _step(place: Place, base: Path, *, sharded: bool, checkpointed: bool) -> tuple[float, torch.Tensor]:
    model = load_base_model(base, device=place.device, dtype=torch.bfloat16, sharded=sharded)
    if sharded:
        refuse_unless_it_runs(model, device=place.device, dtype=torch.bfloat16)
    adapted = with_lora(model)
    if checkpointed:
        checkpoint_gradients(adapted)
    policy = Policy(adapted, device=place.device, dtype=torch.bfloat16)
    assert policy.sharded == sharded
    total = 0.0
    for batch in micro_batches(random_rows(LENGTHS, VOCABULARY), 64, flat=policy.flat_rows):
        loss = -policy.logprobs(batch).sum()
        loss.backward()
        total += loss.item()
    if sharded:
        policy.empty_pass(backward=True)
    return total, gradients(policy)
