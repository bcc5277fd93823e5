"""Reads the rows of an Arrow file or stream: shards of the `datasets` library, and Feather.

The file is mapped, since a batch may be as large as the whole of it; what was read is given back as the rows go by.
Nothing in it is believed: offsets are checked before they are followed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuning.data.files.batches import BATCH_ROWS, DECODER_BYTES, Unfolding, check_names, limited_memory, rows_of
from llm_tuning.data.files.rows import COPY_AGAIN, MAX_ROW_BYTES, Row
from llm_tuning.data.files.stored import StoredFile
from llm_tuning.errors import InputError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

_GIVEN_BACK_BYTES = 16 << 20
"""Of the mapped file are read before their pages are given back."""


def read_arrow(stored: StoredFile) -> Iterator[Row]:
    """Yield (1-based index, value) of each row, the value a RowFault where the row is too large. Raises InputError."""
    with stored.on_disk() as at:
        yield from _read(stored.path, at)


def _read(path: Path, at: Path) -> Iterator[Row]:
    import pyarrow as pa

    number = 0
    try:
        with at.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last batch that lies in it
        unfolding = Unfolding(path, len(mapped))
        for batch in _batches(path, mapped):
            unfolding.add(batch, number)
            for row in rows_of(batch):
                number += 1
                yield number, row
    except MemoryError:
        rule = f"unfolds to more than {DECODER_BYTES >> 20} MiB, and a row may have {MAX_ROW_BYTES >> 20} MiB"
        raise InputError(Problem(f"{path}, after row {number}", rule, "write it in smaller batches")) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        where = f"{path}, after row {number}" if number else str(path)
        is_text = isinstance(error, UnicodeDecodeError)
        rule = "holds text that is not UTF-8" if is_text else "is not a whole Arrow file"
        raise InputError(Problem(where, rule, COPY_AGAIN)) from None


def _batches(path: Path, mapped: mmap.mmap) -> Iterator[pa.RecordBatch]:
    """Yield the rows in small batches; raises InputError, and what pyarrow raises for a file that is not whole."""
    import pyarrow as pa

    content = pa.py_buffer(mapped)
    if mapped[:6] == b"ARROW1":
        file = pa.ipc.open_file(content)
        check_names(path, file.schema)
        whole = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        stream = pa.ipc.open_stream(content)
        check_names(path, stream.schema)
        whole = iter(stream)
    read = 0
    while True:
        with limited_memory():
            batch = next(whole, None)
            if batch is None:
                return
            batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            yield part
            read += part.nbytes
            if read >= _GIVEN_BACK_BYTES:
                mapped.madvise(mmap.MADV_DONTNEED)
                read = 0
