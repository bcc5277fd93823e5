"""Whether the GPUs that a run asks for can be used, found before a model is loaded, with torch's own reason if not.

What another start or another node may cure is a TryAgain (`GPUUnavailable`): a missing driver, a card that is lost or
held. What this machine will never have is an InputError.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

import torch

from llm_tuning.core.cards import VISIBLE
from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.run.devices import DEFAULT_DEVICES, gpu_required, gpus_in_words, in_pod

log = logging.getLogger(__name__)

REASON = "GPUUnavailable"

DRIVERS = {"12": "525", "13": "580"}
"""The oldest Linux driver of each CUDA release that torch may be built for."""


def usable_device(devices: list[str], rank: int) -> str:
    """Return the device of this rank, made current, after trying it; the default falls back to the CPU, with a warning.

    A rank of several has its card alone, as cuda:0 (`run.launch`). One process has all of them, and opens a context on
    its own only.
    Raises TryAgain for a GPU that cannot be used now, InputError for one that this machine or this torch does not have.
    """
    device = devices[rank]
    if device == "cpu":
        return device
    if (reason := why_no_cuda()) is not None:
        if devices == DEFAULT_DEVICES and not gpu_required():
            why = f"{reason}{_visible_in_words()}"
            log.warning("training on the CPU, as torch sees no GPU here: %s (devices cpu is how to mean it)", why)
            return "cpu"
        raise _no_cuda([device], reason)
    if len(devices) == 1:
        check_visible(devices)
    gpu, usable = gpus_in_words([device]), device if len(devices) == 1 else "cuda:0"
    try:
        _check_kernels(gpu, usable)
        torch.cuda.set_device(usable)
        torch.cuda.mem_get_info(usable)  # makes the context, which a lost card or one in exclusive use refuses
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        rule = f"{gpu} cannot be used: {first_line(error)}"
        raise TryAgain(REASON, f"{rule}; another process holds it, or it has failed") from error
    return usable


def check_visible(devices: list[str]) -> None:
    """Raise unless all GPUs among `devices` are there; opens a context on none of them.

    TryAgain in a pod, where the operator counts the GPUs, and InputError elsewhere.
    """
    asked = [device for device in devices if device != "cpu"]
    if not asked:
        return
    count = torch.cuda.device_count()
    missing = [device for device in asked if int(device.removeprefix("cuda:")) >= count]
    if count == 0:
        raise _no_cuda(asked, why_no_cuda() or "it sees no GPU")
    if missing and in_pod():
        why = "one is lost, or they are parts of one card (MIG, time slicing), of which a process sees the first"
        raise TryAgain(REASON, f"the pod was given {len(asked)} GPUs and torch sees {count}: {why}")
    if missing:
        numbers = "0" if count == 1 else f"0 to {count - 1}"
        have = f"{count} GPU{'s' * (count > 1)}: {numbers}"
        visible = os.environ.get(VISIBLE)
        fix = f"this machine has {have}" if visible is None else f"{VISIBLE}={visible} leaves {have}, counted there"
        raise InputError(Problem("devices", f"there is no {gpus_in_words(missing[:1])}", fix))


def why_no_cuda() -> str | None:
    """Return in torch's words why it sees no GPU, None where it sees some."""
    with warnings.catch_warnings(action="ignore"):  # what it warns of once is raised below every time
        if torch.cuda.is_available():
            return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        said = first_line(error)
        numbered = re.search(r"Error \d+: .*", said)
        return numbered.group() if numbered else said.split(". ")[0]
    return "it sees no GPU"


def _no_cuda(devices: list[str], reason: str) -> TryAgain:
    built = torch.version.cuda
    needs = "torch has no CUDA"
    if built is not None:
        driver = DRIVERS.get(built.split(".", maxsplit=1)[0])
        needs = f"torch is built for CUDA {built}" + (f" and needs driver {driver} or newer" if driver else "")
    asked = "was" if len(devices) == 1 else "were"
    return TryAgain(
        REASON,
        f"{gpus_in_words(devices)} {asked} asked for, but torch sees none: {reason}; {needs}{_visible_in_words()}; "
        "mend that, or {set:devices=cpu}",
    )


def _visible_in_words() -> str:
    """Return what goes on a sentence of GPUs that are not seen; empty where nothing hides them."""
    visible = os.environ.get(VISIBLE)
    return "" if visible is None else f", and {VISIBLE} is {visible!r}"


def _check_kernels(gpu: str, device: str) -> None:
    """Raise InputError for a card that this torch has no machine code for: its first kernel would fail."""
    capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if runs_on(capability, built):
        return
    has = ", ".join(f"{major}.{minor}" for major, minor in sorted({version for _, version in _architectures(built)}))
    rule = (
        f"{gpu} is a {torch.cuda.get_device_name(device)} of compute capability {capability[0]}.{capability[1]}, "
        f"and torch {torch.__version__} has kernels for {has}"
    )
    raise InputError(Problem("devices", rule, "choose another GPU, or a torch that is built for this one"))


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Return whether a card has kernels in a torch `built` for `sm_90`, `compute_120`, ...; True where it says nothing.

    Machine code (sm) runs on later cards of the same major version, intermediate code (compute) on all later ones.
    """
    known = _architectures(built)
    return not known or any(
        version <= capability and (kind == "compute" or version[0] == capability[0]) for kind, version in known
    )


def _architectures(built: list[str]) -> list[tuple[str, tuple[int, int]]]:
    """Parse `sm_120` to (sm, (12, 0))."""
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name) for name in built]
    return [(match[1], (int(match[2]), int(match[3]))) for match in found if match]


def first_line(error: BaseException) -> str:
    """Return what an error says first: CUDA's errors go on with advice for programmers."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
