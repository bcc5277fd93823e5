"""The adapter of a run on 4 bits on the base without quantisation, which is what a server has.

The two bases differ by more than rounding: what the adapter does to one is not quite what it does to the other.
"""

from __future__ import annotations

import gc
import logging

import torch

from llm_tuning.core.host_memory import free_host_bytes
from llm_tuning.models.base import inspect_base, read_config
from llm_tuning.models.families import family_of
from llm_tuning.run.context import TrainRun
from llm_tuning.run.devices import SCORING_BYTES
from llm_tuning.trainers.model import TRAINED, load_base_model, read_adapter
from llm_tuning.trainers.policy import Policy

log = logging.getLogger(__name__)


def unquantised_policy(run: TrainRun, trained: Policy) -> Policy | None:
    """Return the saved adapter on the run's base in the run's precision; None, with the reason logged, without room.

    `trained` gives up its base for it and cannot be used afterwards. Raises what loading raises.
    """
    from peft import LoraConfig, get_peft_model

    _give_up_base(trained)
    needed = inspect_base(run.base).parameters * trained.dtype.itemsize + SCORING_BYTES
    free = free_bytes(run.device)
    if free < needed:
        log.warning(
            "the probes of the proof are scored on 4 bits: the base without quantisation takes %.1f GiB, %.1f are free",
            needed / 2**30,
            free / 2**30,
        )
        return None
    base = load_base_model(run.base, device=run.device, dtype=trained.dtype)
    model = get_peft_model(base, LoraConfig.from_pretrained(str(run.stage)), adapter_name=TRAINED)
    read_adapter(model, run.stage, TRAINED, family_of(read_config(run.base)))
    return Policy(model, device=run.device, dtype=trained.dtype)


def free_bytes(device: str) -> int:
    """Return the bytes that are free on `device`, of the host's memory for a CPU, once all that is unused is freed."""
    gc.collect()
    if not device.startswith("cuda"):
        return free_host_bytes()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


def _give_up_base(policy: Policy) -> None:
    """Free the frozen weights: on a card that is large enough for one of the bases they may be in the way."""
    for parameter in policy.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.new_empty(0)
