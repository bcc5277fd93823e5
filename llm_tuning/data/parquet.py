"""Reads the rows of a Parquet file in bounded memory and time, whatever a few bytes of it unfold to.

Pages are compressed and values are shared, so neither the size of the file nor what it says of itself bounds a row: 800
bytes can be gigabytes of text. What bounds them is the memory that the decoder may take, and a limit on the sum.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_tuning.data.json_stream import MAX_ROW_BYTES, Row, row_too_large
from llm_tuning.errors import InputError, Problem

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_ROWS = 256
DECODER_BYTES = 512 << 20
"""Memory that the decoding of one batch may take: the pages that it lies in, its values, and the rows as objects."""
MOST_UNFOLDED = 1000
"""Bytes of rows at most to a byte of the file. Repeated prompts, compressed well, come to a few hundred."""
LEAST_UNFOLDED_BYTES = 64 << 20
"""What a file of any size may unfold to."""
_ROW_BYTES = 64
"""What a row counts at least: a billion rows of null are no bytes at all."""


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield (1-based index, value) of each row, the value a RowFault where the row is too large. Raises InputError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with _limited_memory():
            file = pq.ParquetFile(path, memory_map=True)
        with file:
            limit = max(LEAST_UNFOLDED_BYTES, MOST_UNFOLDED * path.stat().st_size)
            for batch in _batches(file):
                limit -= batch.nbytes + _ROW_BYTES * batch.num_rows
                if limit < 0:
                    raise _unfolds_too_far(path, number)
                for row in _rows(batch):
                    number += 1
                    yield number, row
    except MemoryError:  # pyarrow's own is one as well
        rule = f"unfolds to more than {DECODER_BYTES >> 20} MiB, and a row may have {MAX_ROW_BYTES >> 20} MiB"
        raise InputError(Problem(f"{path}, row {number + 1}", rule, "split it into several rows")) from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        where = f"{path}, after row {number}" if number else str(path)
        is_text = isinstance(error, UnicodeDecodeError)
        rule = "holds text that is not UTF-8" if is_text else "is not a whole Parquet file"
        raise InputError(Problem(where, rule, "copy or write the file again")) from None


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches, one by one in a row group of which a batch does not fit into the memory."""
    for group in range(file.num_row_groups):
        done = 0
        try:
            for batch in _group(file, group, _BATCH_ROWS):
                yield batch
                done += batch.num_rows
        except MemoryError:
            yield from islice(_group(file, group, 1), done, None)


def _group(file: pq.ParquetFile, group: int, rows: int) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)
    while True:
        with _limited_memory():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _rows(batch: pa.RecordBatch) -> Iterator[Any]:
    """Yield the rows of a batch as objects, each converted by itself where one of them may be too large."""
    if batch.nbytes <= MAX_ROW_BYTES and not any(map(_shares_values, batch.schema.types)):
        with _limited_memory():
            rows = batch.to_pylist()
        yield from rows
        return
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        if row.nbytes > MAX_ROW_BYTES and not any(map(_shares_values, row.schema.types)):
            yield row_too_large()
            continue
        with _limited_memory():
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


def _unfolds_too_far(path: Path, number: int) -> InputError:
    size = path.stat().st_size
    most = max(LEAST_UNFOLDED_BYTES, MOST_UNFOLDED * size)
    rule = f"unfolds to more than {most >> 20:,} MiB of rows from {size:,} bytes"
    return InputError(Problem(f"{path}, after row {number:,}", rule, "remove repeated rows, or save it as JSON Lines"))


@contextmanager
def _limited_memory() -> Iterator[None]:
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
