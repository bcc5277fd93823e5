"""The precision of a run: `training.precision` resolved on the device it begins on, and kept wherever it is resumed.

The configuration hash counts the precision as it is written, so a run with `auto` may be resumed on a machine that
would resolve it otherwise. Half a run in each precision would be neither.
"""

from __future__ import annotations

import logging

import torch

from llm_tuning.core.files import read_json, write_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import PRECISION
from llm_tuning.run.checkpoints import latest_checkpoint
from llm_tuning.run.context import TrainRun
from llm_tuning.run.devices import gpus_in_words
from llm_tuning.trainers.parallel import gather_objects

log = logging.getLogger(__name__)

NAMES = {"bf16": torch.bfloat16, "fp32": torch.float32}
NATIVE_BF16 = ("amx_bf16", "avx512_bf16")
"""CPU features with which products of bf16 matrices are faster than in fp32; elsewhere torch emulates them, slower."""


def computes_in_bf16(device: str) -> bool:
    """Return whether the device has instructions for bf16."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in NATIVE_BF16)


def resolve_precision(precision: str, device: str) -> str:
    """Return bf16 or fp32; `auto` is bf16 where the device computes in it. Raises InputError for a GPU without bf16."""
    if precision == "auto":
        return "bf16" if computes_in_bf16(device) else "fp32"
    if precision == "bf16" and device.startswith("cuda") and not computes_in_bf16(device):
        rule = f"is bf16, which {torch.cuda.get_device_name(device)} does not support"
        raise InputError(Problem("training.precision", rule, "set fp32"))
    return precision


def precision_of_run(run: TrainRun) -> torch.dtype:
    """Return the dtype of base weights and activations; noted in the run's folder when it begins with `auto`.

    Raises InputError where a run that began in bf16 is resumed on a GPU that does not support it, and where `auto` is
    another precision on one rank's GPU than on another's.
    """
    asked = run.config.training.precision
    if asked != "auto":
        return NAMES[resolve_precision(asked, run.device)]
    here = resolve_precision(asked, run.device)
    _refuse_different(gather_objects((here, _name_of(run))))
    noted = gather_objects(_noted(run))[0]
    if noted is None:
        if run.is_main:
            write_json(run.work / PRECISION, {"precision": here})
        return NAMES[here]
    if noted != here:
        if run.device.startswith("cuda") and noted == "bf16":
            gpu = torch.cuda.get_device_name(run.device)
            rule = f"is auto, and this run began in bf16, which {gpu} does not support"
            fix = "resume it on a GPU with bf16, or start a new run under another {field:model_id}"
            raise InputError(Problem("training.precision", rule, fix))
        slowly = ", which this machine has no instructions for: slower than fp32" if noted == "bf16" else ""
        log.warning("this run began in %s and continues in it%s", noted, slowly)
    return NAMES[noted]


def _refuse_different(resolved: list[tuple[str, str]]) -> None:
    """Raise InputError where the ranks' (precision, device) are not all of one precision."""
    devices: dict[str, str] = {}
    for precision, device in resolved:
        devices.setdefault(precision, device)
    if len(devices) > 1:
        rule = "is auto, which is " + " but ".join(f"{precision} on {device}" for precision, device in devices.items())
        raise InputError(Problem("training.precision", rule, "set fp32, or choose GPUs of one kind"))


def _name_of(run: TrainRun) -> str:
    if not run.device.startswith("cuda"):
        return run.device
    return f"{gpus_in_words([run.spec.devices[run.rank]])} ({torch.cuda.get_device_name(run.device)})"


def _noted(run: TrainRun) -> str | None:
    """Read the precision that the run began in, None where it begins now. Version 0.1 noted none: fp32 on every CPU."""
    found = read_json(run.work / PRECISION)
    if found is not None:
        return str(found["precision"])
    if run.device == "cpu" and latest_checkpoint(run.checkpoints) is not None:
        return "fp32"
    return None
