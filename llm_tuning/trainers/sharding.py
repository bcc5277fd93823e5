"""A frozen base of which each rank holds a part: what is divided, and how it is loaded without ever being whole.

Only the base is divided. The adapter is attached afterwards and is whole on every rank, and so are its gradients,
optimizer, checkpoints and published files: none of them knows how many ranks there are.

A module is whole while it runs, for which all ranks have to run it together: who has fewer passes to make than others
joins them with an empty one (`Policy.empty_pass`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from llm_tuning.errors import InputError, Problem
from llm_tuning.trainers.gpu import first_line
from llm_tuning.trainers.memory import out_of_memory
from llm_tuning.trainers.model import autocast, decoder_of
from llm_tuning.trainers.parallel import fetch_nothing_ahead, shard, world_size

M_MMAP_THRESHOLD = -3
"""The number of this option in glibc's malloc.h."""
GIVEN_BACK = 2**20
"""Bytes of a block that goes back to the system as soon as it is freed."""


@contextmanager
def sharded_loading(device: str, copies: int) -> Iterator[dict[str, Any]]:
    """Have `from_pretrained` divide what it loads, in so many `copies`; yields what to call it with besides.

    transformers builds a model without memory, divides it, and reads of each file only this rank's slices. Its own way
    to divide has groups that end with the output layer, which is not called here (`trainers.head`), and takes the GPU
    by LOCAL_RANK, where a rank sees its own alone: so those two steps are replaced.
    """

    def prepare(_class: type, config: DistributedConfig, device_map: Any = None) -> tuple[Any, Any, None]:
        return config, device_map, None

    divided: list[PreTrainedModel] = []

    def distribute(_class: type, model: PreTrainedModel, *_: Any) -> PreTrainedModel:
        divided.append(model)
        if device == "cpu":
            _give_freed_memory_back()
        shard(groups_of(model), device, copies)
        fetch_nothing_ahead(next(_outermost(model.get_decoder())))  # of the embeddings, which have no way back
        model._is_fsdp_managed_module = True  # by which generate() keeps the ranks together
        return model

    kept = {name: vars(PreTrainedModel).get(name) for name in ("prepare_distribute_model", "maybe_distribute_model")}
    PreTrainedModel.prepare_distribute_model = classmethod(prepare)
    PreTrainedModel.maybe_distribute_model = classmethod(distribute)
    try:
        yield {"distributed_config": DistributedConfig(fsdp_size=world_size() // copies)}
    finally:
        for name, method in kept.items():
            if method is None:  # inherited
                delattr(PreTrainedModel, name)
            else:
                setattr(PreTrainedModel, name, method)
    if not divided:
        rule = f"divides the base, and transformers {transformers.__version__} loads no base in parts as 5.24 does"
        raise InputError(Problem("training.sharding", rule, "install that version, or set it to none"))


def _give_freed_memory_back() -> None:
    """Have glibc, for the rest of this process, give freed blocks back to the system from a MiB on.

    Left alone it soon keeps all below 32 MiB for later, and does not find them again for what is gathered next, since
    torch asks for aligned ones: a rank would come to hold twice what the whole base takes. A new page for each
    activation costs a tenth or two of the speed of a pass.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not every C library has it, nor the habit
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, GIVEN_BACK)


def groups_of(model: Any) -> list[nn.Module]:
    """Return what is gathered together, inner modules first: each layer, embeddings, output layer, and what is left.

    Raises InputError for a model without layers that transformers marks as such.
    """
    decoder, embeddings, head = decoder_of(model), model.get_input_embeddings(), model.get_output_embeddings()
    layers = list(_outermost(decoder))
    if not layers:
        rule = f"divides the base, and the layers of {type(model).__name__} are not known"
        raise InputError(Problem("training.sharding", rule, "set it to none"))
    groups = [*layers, embeddings, head, _whole_of(decoder)]
    if head is not None and head.weight is embeddings.weight:
        # Divided apart, so that they are whole one after the other; loading ties their slices to each other again
        head.weight = nn.Parameter(torch.empty_like(head.weight), requires_grad=False)
    return [module for module in groups if module is not None]


def _whole_of(decoder: nn.Module) -> nn.Module:
    """Return the part that holds all of `decoder`: OPT's causal LM calls that one past what is around it."""
    while len(parts := list(decoder.children())) == 1 and not list(decoder.parameters(recurse=False)):
        (decoder,) = parts
    return decoder


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _outermost(child)


@torch.no_grad()
def refuse_unless_it_runs(model: Any, *, device: str, dtype: torch.dtype) -> None:
    """Run a sharded model both ways that it is run later; raises InputError where its parts do not come together.

    Some models call what is inside another one past it, or have a weight in two layers.
    """
    ids_BT = torch.arange(1, 9, device=device)[None]
    try:
        with autocast(device, dtype):
            model(input_ids=ids_BT, use_cache=False)
            decoder_of(model)(input_ids=ids_BT, use_cache=False)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        rule = f"divides the base, and {type(model).__name__} does not run in parts: {first_line(error)[:200]}"
        raise InputError(Problem("training.sharding", rule, "set it to none")) from error
