"""Kubernetes quantities as numbers: `500m` and `0.5` are one value."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>[num]|k|[MGTPE]|[KMGTPE]i)?")
UNITS = {"": Decimal(1), "k": Decimal(1000)} | {
    letter: Decimal(1000) ** -power for power, letter in enumerate("mun", 1)
}
UNITS |= {letter: Decimal(1000) ** power for power, letter in enumerate("MGTPE", 2)}
UNITS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}


def parse_quantity(text: object) -> Decimal:
    """Return cores, bytes or pieces; raises ValueError for what is no quantity."""
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text!r} is not a quantity")
    return Decimal(found["number"]) * UNITS[found["unit"] or ""]
