"""Whether the weights of an adapter are whole, and numbers.

One NaN can spoil an engine for all: it gets into blocks of the KV cache, and they are used again for others.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from llm_tuning.models.adapter_files import ADAPTER_WEIGHTS

_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""By dtype: how its bits are read, and the exponent that infinities and NaN have. numpy has no bfloat16."""
_AT_ONCE = 2**22


def find_weight_fault(adapter: Path) -> str | None:
    """What is wrong with them, None for nothing; the header must be a readable one. Reads the file once."""
    file = adapter / ADAPTER_WEIGHTS
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    start, size = 8 + length, file.stat().st_size
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        begin, end = (start + int(offset) for offset in tensor["data_offsets"])
        if end > size:
            return f"is cut off: {size} bytes, and {name} ends at {end}; copy it again"
        kind, exponent = _EXPONENTS.get(tensor["dtype"], ("", 0))
        if kind and end > begin and not _finite(np.memmap(file, kind, "r", begin, _count(begin, end, kind)), exponent):
            return f"holds values that are no numbers (NaN or infinite), in {name}; train it again"
    return None


def _count(begin: int, end: int, kind: str) -> tuple[int]:
    return ((end - begin) // np.dtype(kind).itemsize,)


def _finite(bits: np.ndarray[Any, Any], exponent: int) -> bool:
    for at in range(0, len(bits), _AT_ONCE):
        part = bits[at : at + _AT_ONCE]
        if ((part & exponent) == exponent).any():
            return False
    return True
