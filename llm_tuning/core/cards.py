"""CUDA's variables of which cards a process sees, and how they are numbered."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The cards that a process has: numbers, or identifiers of GPUs and MIG devices, in the order of their own numbers."""
ORDER = "CUDA_DEVICE_ORDER"


def listed_cards(visible: str) -> list[str]:
    """Read CUDA_VISIBLE_DEVICES as CUDA does: the list ends before the first entry that names no card, as -1."""
    entries = (entry.strip() for entry in visible.split(","))
    return list(itertools.takewhile(lambda entry: entry.isdecimal() or entry.startswith(("GPU-", "MIG-")), entries))


def card_order(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that numbers cards as nvidia-smi does, unless `environment` has decided how they are."""
    return {} if {ORDER, VISIBLE} & environment.keys() else {ORDER: "PCI_BUS_ID"}
