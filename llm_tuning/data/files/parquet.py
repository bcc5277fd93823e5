"""Reads the rows of a Parquet file in bounded memory and time, whatever a few bytes of it unfold to.

Pages are compressed and values are shared, so neither the size of the file nor what it says of itself bounds a row: 800
bytes can be gigabytes of text. What bounds them is the memory that the decoder may take, and a limit on the sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuning.data.files.batches import BATCH_ROWS, DECODER_BYTES, Unfolding, check_names, limited_memory, rows_of
from llm_tuning.data.files.rows import COPY_AGAIN, MAX_ROW_BYTES, Row
from llm_tuning.data.files.stored import StoredFile
from llm_tuning.errors import InputError, Problem

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BUFFER_BYTES = 1 << 20
"""Read of a column at once. By default pyarrow reads a row group whole, and a memory map keeps all that was touched."""

_BATCH_BYTES = 4 << 20


def read_parquet(stored: StoredFile) -> Iterator[Row]:
    """Yield (1-based index, value) of each row, the value a RowFault where the row is too large. Raises InputError."""
    with stored.on_disk() as at:
        yield from _read(stored.path, at)


def _read(path: Path, at: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with limited_memory(), _malloc():
            file = pq.ParquetFile(at, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        with file:
            check_names(path, file.schema_arrow)
            unfolding = Unfolding(path, at.stat().st_size)
            for batch in _batches(file):
                unfolding.add(batch, number)
                for row in rows_of(batch):
                    number += 1
                    yield number, row
    except MemoryError:  # pyarrow's own is one as well
        rule = f"unfolds to more than {DECODER_BYTES >> 20} MiB, and a row may have {MAX_ROW_BYTES >> 20} MiB"
        raise InputError(Problem(f"{path}, row {number + 1}", rule, "split it into several rows")) from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        where = f"{path}, after row {number}" if number else str(path)
        is_text = isinstance(error, UnicodeDecodeError)
        rule = "holds text that is not UTF-8" if is_text else "is not a whole Parquet file"
        raise InputError(Problem(where, rule, COPY_AGAIN)) from None


@contextmanager
def _malloc() -> Iterator[None]:
    """Let what is opened here allocate from the system, which gives pages back; Arrow's own pool keeps more."""
    import pyarrow as pa

    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches, one by one in a row group of which a batch does not fit into the memory."""
    for group in range(file.num_row_groups):
        done = 0
        try:
            for batch in _group(file, group, _rows_at_once(file, group)):
                yield batch
                done += batch.num_rows
        except MemoryError:
            yield from islice(_group(file, group, 1), done, None)


def _rows_at_once(file: pq.ParquetFile, group: int) -> int:
    """Return how many rows to decode together: fewer of long ones, as far as the file says how long they are."""
    described = file.metadata.row_group(group)
    fitting = _BATCH_BYTES * int(described.num_rows) // max(1, int(described.total_byte_size))
    return max(1, min(BATCH_ROWS, fitting))


def _group(file: pq.ParquetFile, group: int, rows: int) -> Iterator[pa.RecordBatch]:
    batches = file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)
    while True:
        with limited_memory():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
