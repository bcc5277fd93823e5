"""Headers of safetensors files: names, dtypes and shapes of tensors, without reading one.

Format: eight bytes with the header's length (little-endian), a JSON header with `data_offsets`, then the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llm_tuning.core.files import open_regular

MAX_HEADER_BYTES = 10**8
"""The format's own limit."""
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Tensor:
    """One tensor; its bytes are those from `begin` to `end` of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path, *, most: int = MAX_HEADER_BYTES) -> dict[str, Tensor]:
    """Read the tensors of a whole file, by name; `most` bounds the header's bytes.

    Raises ValueError for what is no whole safetensors file, OSError where it cannot be read.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, most):
            raise ValueError(f"is not a safetensors file (a header of {length:,} bytes)")
        tensors = _parse(stream, length)
    whole = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if whole != size:
        raise ValueError(f"is cut off: {size} bytes instead of {whole}")
    return tensors


def _parse(stream: BinaryIO, length: int) -> dict[str, Tensor]:
    try:
        header = json.loads(stream.read(length))
        if not isinstance(header, dict):
            raise TypeError("the header is no JSON object")
        return dict(_tensors(header, start=8 + length))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"is not a safetensors file ({error!r})") from None


def _tensors(header: dict[str, Any], *, start: int) -> Iterator[tuple[str, Tensor]]:
    for name, value in header.items():
        if name == _METADATA:
            continue
        begin, end = value["data_offsets"]
        numbers = [*value["shape"], begin, end]
        if not all(type(number) is int and number >= 0 for number in numbers) or begin > end:
            raise ValueError(f"{name} has impossible numbers")
        yield name, Tensor(str(value["dtype"]), tuple(value["shape"]), start + begin, start + end)
