"""A base in parts: torch's FSDP2 with its streams and buffers, on a run's card, and on two where there are two.

What several cards do to each other needs several cards; that parts are loaded to the right device, come together before
they are used and are gone afterwards, and what `training.sharding: auto` makes of a card's memory, one card tells.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from llm_tuning.errors import InputError
from llm_tuning.planning.verdict import GPUS
from llm_tuning.run.context import TrainRun
from llm_tuning.run.devices import own_gpu
from llm_tuning.run.division import GIB, LEFT_FREE, divide
from llm_tuning.run.memory import peak_bytes
from llm_tuning.trainers.division import divided
from llm_tuning.trainers.model import checkpoint_gradients, load_base_model
from llm_tuning.trainers.parallel import process_group, sum_gradients
from llm_tuning.trainers.policy import Policy
from llm_tuning.trainers.sharding import refuse_unless_it_runs
from tests.gpu.findings import Finding, Place, below, not_here, same, shown, within
from tests.gpu.models import away, gradients, micro_batches, random_rows, with_lora
from tests.support.shapes import LLAMA_3_8B, LLAMA_3_70B, make_setting
from tests.support.tiny_base import make_base
from tests.support.train_run import make_run

LENGTHS, VOCABULARY = [40, 17, 60, 29], 512
ROOT = Path(__file__).parents[2]


def sharding(place: Place) -> Iterator[Finding]:
    """Ask what auto makes of this card; compare a step on a divided base with one on the whole base."""
    base = make_base(place.scratch / "sharding" / "base", layers=3)
    yield from _of_memory(place)
    whole = {checkpointed: _step(place.device, base, checkpointed=checkpointed) for checkpointed in (False, True)}
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "rendezvous"), 1)
        device_id = torch.device(place.device) if place.cuda else None
        backend = place.choose(cuda="nccl", cpu="gloo")
        if place.cuda:
            torch.cuda.set_device(place.device)
        dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device_id)
        try:
            yield from _of_a_run(place, base)
            for checkpointed, want in whole.items():
                got = _step(place.device, base, sharded=True, checkpointed=checkpointed)
                yield from _against(place, f"in one part, {'checkpointed' if checkpointed else 'plain'}", got, want)
        finally:
            dist.destroy_process_group()
    if place.cuda and torch.cuda.device_count() < 2:
        yield not_here("parts on several cards", "needs two GPUs: NCCL refuses two ranks on one card")
    else:
        yield from _on_two(place, base, whole[True])


def _of_memory(place: Place) -> Iterator[Finding]:
    """Compare what CUDA says of the card's memory with the plan, and what auto makes of it for a large base."""
    if not place.cuda:
        yield not_here("the memory that auto goes by", "a CPU has none of its own")
        return
    room = torch.cuda.mem_get_info(place.device)[1]
    ratio, gpu = min(((room / GIB / gpu.usable_gib, gpu) for gpu in GPUS), key=lambda found: abs(found[0] - 1))
    said = f"memory by CUDA, of what the plan counts with for {gpu.gigabytes} GB"
    yield within(said, ratio, 0.98, 1.1) if abs(ratio - 1) < 0.15 else shown(said, f"{ratio:.3g}")
    setting = make_setting(rank=16, tokens=4096, learned=4096, number_bytes=2, cuda=True, checkpointing=True)
    for name, shape in (("8B", LLAMA_3_8B), ("70B", LLAMA_3_70B)):

        def takes(shards: int) -> int:
            return peak_bytes(shape, shape.linears, replace(setting, processes=8, shards=shards))  # noqa: B023 - in turn

        found = divide("auto", takes, room=room, processes=8, nodes=1)
        in_parts = 2 * shape.parameters > (1 - LEFT_FREE) * room
        yield same(f"{name} on eight of these cards: parts", found.shards, 8 if in_parts else 1)
        yield shown(f"{name} on eight of these cards", found)


def _of_a_run(place: Place, base: Path) -> Iterator[Finding]:
    """Ask a run of two ranks, which hears of one card alone here, how its base is divided."""

    def parts(sharding: str, quantization: str = "none") -> int:
        return divided(_run(place, base, sharding, quantization), torch.bfloat16).shards

    yield same("auto with a small base: parts", parts("auto"), 1)
    yield same("full: parts", parts("full"), 2)
    yield same("auto in 4 bits: parts", parts("auto", "4bit"), 1)
    yield same("full in 4 bits is refused", _is_refused(lambda: parts("full", "4bit")), True)


def _is_refused(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except InputError as error:
        return "training.sharding: is full beside model.quantization 4bit" in str(error)
    return False


def _run(place: Place, base: Path, sharding: str, quantization: str = "none") -> TrainRun:
    training = {"sharding": sharding}
    return make_run(
        place.scratch / "sharding" / "run",
        base,
        training=training,
        quantization=quantization,
        world=2,
        device=place.device,
    )


def _on_two(place: Place, base: Path, want: tuple[float, torch.Tensor]) -> Iterator[Finding]:
    """Let two processes, each with a card of its own, make the step together on a base in two parts."""
    folder = place.scratch / "sharding"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ranks = []
    for rank in range(2):
        own = {"CUDA_VISIBLE_DEVICES": own_gpu(f"cuda:{rank}", visible)} if place.cuda else {}
        command = [sys.executable, "-m", "tests.gpu.sharding", place.choose(cuda="cuda:0", cpu="cpu"), str(rank)]
        environment = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"} | dict(os.environ) | own
        ranks.append(subprocess.Popen([*command, str(folder)], cwd=ROOT, env=environment))
    try:
        codes = [rank.wait(place.left) for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
    yield same("two ranks end with", codes, [0, 0])
    if codes == [0, 0]:
        found = torch.load(folder / "step-of-two.pt")
        yield from _against(place, "in two parts, checkpointed", (found["loss"], found["gradients"]), want)
        yield same("numbers that a rank holds, of the base's", found["share"], 0.5)


def _against(
    place: Place, name: str, found: tuple[float, torch.Tensor], want: tuple[float, torch.Tensor]
) -> Iterator[Finding]:
    yield below(f"{name}: loss off", abs(found[0] / want[0] - 1), 1e-5)
    yield below(f"{name}: gradients off", away(found[1], want[1]), place.choose(cuda=1e-2, cpu=1e-6))


def _step(
    device: str, base: Path, *, sharded: bool = False, checkpointed: bool = False, rank: int = 0, world: int = 1
) -> tuple[float, torch.Tensor]:
    """Make the pass forward and back of every `world`-th micro-batch; returns the loss and the gradients of all."""
    model = load_base_model(base, device=device, dtype=torch.bfloat16, sharded=sharded)
    if sharded:
        refuse_unless_it_runs(model, device=device, dtype=torch.bfloat16)
    adapted = with_lora(model)
    if checkpointed:
        checkpoint_gradients(adapted)
    policy = Policy(adapted, device=device, dtype=torch.bfloat16)
    assert policy.sharded == sharded
    total = torch.zeros((), dtype=torch.float64, device=device)
    batches = micro_batches(random_rows(LENGTHS, VOCABULARY), 64, flat=policy.flat_rows)[rank::world]
    empty = policy.passes_to_join(len(batches)) + sharded  # asked before the passes, which others wait for
    for batch in batches:
        loss = -policy.logprobs(batch).sum()
        loss.backward()
        total += loss.detach().double()
    for _ in range(empty):
        policy.empty_pass(backward=True)
    sum_gradients(policy.adapter())
    if world > 1:
        dist.all_reduce(total)
    return total.item(), gradients(policy)


def main(device: str, rank: int, folder: Path) -> None:
    """Be one of two ranks; rank 0 leaves the step in `step-of-two.pt`."""
    with process_group(folder / "rendezvous", rank=rank, world=2, device=device):
        loss, vector = _step(device, folder / "base", sharded=True, checkpointed=True, rank=rank, world=2)
        model = load_base_model(folder / "base", device=device, dtype=torch.bfloat16, sharded=True)
        held, whole = (
            sum(count(parameter) for parameter in model.parameters())
            for count in (lambda parameter: parameter.to_local().numel(), lambda parameter: parameter.numel())
        )
    if rank == 0:
        torch.save({"loss": loss, "gradients": vector, "share": held / whole}, folder / "step-of-two.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
