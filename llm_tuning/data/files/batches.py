"""Rows of Arrow record batches as objects, in bounded memory whatever a few bytes of a file unfold to."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_tuning.data.faults import shown
from llm_tuning.data.files.rows import MAX_ROW_BYTES, row_too_large
from llm_tuning.data.files.stored import LEAST_UNFOLDED_BYTES, MOST_UNFOLDED
from llm_tuning.errors import InputError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 256
DECODER_BYTES = 512 << 20
"""Memory that the decoding of one batch may take: the pages that it lies in, its values, and the rows as objects."""
_ROW_BYTES = 64
"""What a row counts at least: a billion rows of null are no bytes at all."""


class Unfolding:
    """Counts what a file unfolds to, batch by batch."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size = path, size
        self._left = self._most = max(LEAST_UNFOLDED_BYTES, MOST_UNFOLDED * size)

    def add(self, batch: pa.RecordBatch, rows_before: int) -> None:
        """Count a batch; raises InputError where it is more than any file of this size may hold."""
        self._left -= batch.nbytes + _ROW_BYTES * batch.num_rows
        if self._left < 0:
            rule = f"unfolds to more than {self._most >> 20:,} MiB of rows from {self._size:,} bytes"
            where = f"{self._path}, after row {rows_before:,}"
            raise InputError(Problem(where, rule, "remove repeated rows, or save it as JSON Lines"))


def check_names(path: Path, schema: pa.Schema) -> None:
    """Raise InputError where two columns, or two fields of one struct, have one name: the last would win in silence."""
    waiting = [list(schema)]
    while waiting:
        fields = waiting.pop()
        names = [field.name for field in fields]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InputError(Problem(str(path), f"names two columns `{shown(twice)}`", "rename or remove one of them"))
        waiting += [
            [field.type.field(at) for at in range(field.type.num_fields)] for field in fields if field.type.num_fields
        ]


def rows_of(batch: pa.RecordBatch) -> Iterator[Any]:
    """Yield the rows of a batch as objects, each converted by itself where one of them may be too large."""
    if batch.nbytes <= MAX_ROW_BYTES and not any(map(_shares_values, batch.schema.types)):
        with limited_memory():
            rows = batch.to_pylist()
        yield from rows
        return
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        if row.nbytes > MAX_ROW_BYTES and not any(map(_shares_values, row.schema.types)):
            yield row_too_large()
            continue
        with limited_memory():
            (value,) = row.to_pylist()
        yield value if _characters(value) <= MAX_ROW_BYTES else row_too_large()


def _shares_values(kind: pa.DataType) -> bool:
    """Return whether values of this type are stored once and named many times, so that their bytes say little."""
    import pyarrow as pa

    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return pa.types.is_dictionary(kind) or any(map(_shares_values, inner))


def _characters(value: Any) -> int:
    """Count characters and bytes of all texts in a row, roughly what its JSON would have."""
    waiting, count = [value], 0
    while waiting:
        item = waiting.pop()
        if isinstance(item, str | bytes):
            count += len(item)
        elif isinstance(item, dict):
            waiting.extend(chain(item, item.values()))
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return count


@contextmanager
def limited_memory() -> Iterator[None]:
    """Raise MemoryError where more than DECODER_BYTES is asked for: in this process, and only while a batch is read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # no Linux: the batch is bounded by the machine
        yield
        return
    limit = pages * resource.getpagesize() + DECODER_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
