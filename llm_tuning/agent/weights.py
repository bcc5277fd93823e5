"""Whether the weights of an adapter are whole, and numbers.

One NaN can spoil an engine for all: it gets into blocks of the KV cache, and they are used again for others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm_tuning.core.files import open_regular
from llm_tuning.models.adapter import HEADER_BYTES
from llm_tuning.models.layout import ADAPTER_WEIGHTS
from llm_tuning.models.safetensors import Tensor, read_header

_EXPONENTS: dict[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""By dtype: how its bits are read, and the exponent that infinities and NaN have. numpy has no bfloat16."""
_AT_ONCE = 2**20


def find_weight_fault(adapter: Path) -> str | None:
    """Find what is wrong with the weights, None for nothing; their header must be readable. Reads the file once."""
    file = adapter / ADAPTER_WEIGHTS
    tensors = read_header(file, most=HEADER_BYTES)
    with open_regular(file) as stream:
        for name, tensor in tensors.items():
            kind, exponent = _EXPONENTS.get(tensor.dtype, ("", 0))
            if kind and not _is_finite(stream, tensor, np.dtype(kind), exponent):
                return f"holds values that are no numbers (NaN or infinite), in {name}; train it again"
    return None


def _is_finite(stream: BinaryIO, tensor: Tensor, kind: np.dtype[Any], exponent: int) -> bool:
    """Read piece by piece: a mapped file that is cut meanwhile would end the process."""
    stream.seek(tensor.begin)
    left = (tensor.end - tensor.begin) // kind.itemsize
    while left > 0 and (piece := stream.read(min(left, _AT_ONCE) * kind.itemsize)):
        bits = np.frombuffer(piece, kind, len(piece) // kind.itemsize)
        if ((bits & exponent) == exponent).any():
            return False
        left -= len(bits) or left
    return True
