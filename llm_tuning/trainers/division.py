"""What `training.sharding` comes to in a run, by the cards that its ranks have; see `run.division`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from llm_tuning.core.files import read_json
from llm_tuning.data.report import Report
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import inspect_base
from llm_tuning.models.layout import DATA_REPORT
from llm_tuning.models.shape import read_shape
from llm_tuning.run.context import TrainRun
from llm_tuning.run.division import Division, divide
from llm_tuning.run.memory import CUDA_CONTEXT_BYTES, NCCL_BYTES, peak_bytes
from llm_tuning.run.setting import Rows, count_steps_of, setting_of
from llm_tuning.trainers.parallel import gather_objects

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Card:
    """What a rank has to compute on."""

    name: str
    capability: tuple[int, int]
    memory: int
    """Bytes of the whole card, or of the slice that this process sees as one."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


def divided(run: TrainRun, dtype: torch.dtype) -> TrainRun:
    """Return `run` with the division of its base, in words in the log; all ranks call it, before the base is loaded.

    Rank 0 decides. Raises InputError where the base is to be divided over cards of several kinds.
    """
    if run.world == 1 and run.config.training.sharding != "full":
        return run
    cards = [card for card in gather_objects(_card(run.device)) if card is not None]
    division = gather_objects(_division(run, dtype, cards) if run.is_main else None)[0]
    assert division is not None
    if run.is_main:
        log.info("sharding: %s", division)
    if division.shards > 1:
        refuse_different(cards, asked=run.config.training.sharding)
    return replace(run, division=division)


def refuse_different(cards: Sequence[Card], *, asked: str) -> None:
    """Raise InputError for ranks with `cards` of several kinds, in the order of the ranks.

    Kernels are chosen and tried on each card, and passes that one rank makes and another does not would wait for ever.
    """
    kinds = [(str(card), rank) for rank, card in enumerate(cards)]
    if len({kind for kind, _ in kinds}) <= 1:
        return
    runs = [(kind, [rank for _, rank in group]) for kind, group in groupby(kinds, key=lambda found: found[0])]
    have = ", ".join(f"{_ranks_in_words(ranks)} {kind}" for kind, ranks in runs)
    rule = f"is {asked}, which divides the base here, and that needs GPUs of one kind: {have}"
    fix = "choose GPUs of one kind (in a cluster by resources.nodeSelector), or set it to none"
    raise InputError(Problem("training.sharding", rule, fix))


def _ranks_in_words(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} has a" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]} have a"


def _card(device: str) -> Card | None:
    if not device.startswith("cuda"):
        return None
    _, total = torch.cuda.mem_get_info(device)
    return Card(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), total)


def _division(run: TrainRun, dtype: torch.dtype, cards: Sequence[Card]) -> Division:
    nodes = run.spec.nodes
    return divide(
        run.config.training.sharding,
        _estimate(run, dtype),
        room=min((card.memory for card in cards), default=None),
        processes=run.world // nodes,
        nodes=nodes,
        four_bits=run.config.model.quantization == "4bit",
    )


def _estimate(run: TrainRun, dtype: torch.dtype) -> Callable[[int], int]:
    """Return the plan's estimate of a rank's bytes, by how many share a copy; a low one for a base of unknown sizes."""
    config, processes = run.config, run.world // run.spec.nodes
    try:
        shape = read_shape(run.base)
        targets = shape.targets(config.lora)
    except InputError:
        parameters = inspect_base(run.base).parameters
        return lambda shards: parameters * dtype.itemsize // shards + CUDA_CONTEXT_BYTES + NCCL_BYTES
    report = _report(run)
    setting = setting_of(
        config,
        shape,
        cuda=run.device.startswith("cuda"),
        number_bytes=dtype.itemsize,
        processes=processes,
        nodes=run.spec.nodes,
        rows=None if report is None else Rows.of(report),
        steps=None if report is None else count_steps_of(config, report, processes=run.world),
    )
    return lambda shards: peak_bytes(shape, targets, replace(setting, shards=shards))


def _report(run: TrainRun) -> Report | None:
    """Return what the check has counted of the rows; None where another version wrote it."""
    found = read_json(run.work / DATA_REPORT)
    try:
        return None if found is None else Report.model_validate(found)
    except ValueError:
        return None
