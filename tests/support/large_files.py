"""Large data sets in every form that is read, written in bounded memory; and a check of one, measured in a process."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
CHECK = """
import json, re, sys, time
from pathlib import Path
from llm_tuning.data.check import check_dataset
from llm_tuning.modes.sft import SFT
base = Path(sys.argv[2]) if len(sys.argv) > 2 else None
wall, cpu = time.monotonic(), time.process_time()
report = check_dataset(sys.argv[1], form=SFT.rows, tokenizer_dir=base, max_length=1024)
seconds, cpu = time.monotonic() - wall, time.process_time() - cpu
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory before the exec
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) >> 10
print(json.dumps({"rows": report.rows, "kept": report.kept, "seconds": seconds, "cpu": cpu, "peak_mib": peak}))
"""


class Rows:
    """Different rows of about 3 kB, of `megabytes` (10^6 bytes) as JSON together: prose with quotes and breaks."""

    def __init__(self, megabytes: float, *, chats: bool = False) -> None:
        self.megabytes, self.chats = megabytes, chats
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        text = "".join(pydoc_data.topics.topics.values())
        left = self.megabytes * 10**6
        while left > 0:
            start = self.count * 997 % (len(text) - 3000)
            question, answer = f"{self.count} {text[start : start + 200]}", text[start : start + 2800]
            row: dict[str, Any] = {"prompt": question, "output": answer}
            if self.chats:
                parts = [question, answer[:900], answer[900:1000], answer[1000:]]
                roles = ("user", "assistant") * 2
                row = {"messages": [{"role": r, "content": part} for r, part in zip(roles, parts, strict=True)]}
            left -= len(question) + len(answer) + 100  # what quotes, names and line breaks add
            self.count += 1
            yield row

    def batches(self, size: int) -> Iterator[list[dict[str, Any]]]:
        """Yield them in lists of `size`."""
        given = iter(self)
        while batch := list(islice(given, size)):
            yield batch


def _jsonl(path: Path, given: Rows) -> None:
    with path.open("wb") as file:
        _write_lines(file, given)


def _gzip(path: Path, given: Rows) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        _write_lines(file, given)


def _zstd(path: Path, given: Rows) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        _write_lines(file, given)


def _write_lines(file: Any, given: Iterable[dict[str, Any]]) -> None:
    for row in given:
        file.write(json.dumps(row).encode() + b"\n")


def _array(path: Path, given: Rows, *, before: str = "[", after: str = "]") -> None:
    with path.open("w") as file:
        file.write(before)
        for row in given:
            file.write(",\n" * (given.count > 1) + json.dumps(row))
        file.write(after)


def _wrapped(path: Path, given: Rows) -> None:
    """With another list in front of it."""
    other = json.dumps(list(Rows(10)))
    _array(path, given, before=f'{{"other": {other}, "train": [', after="]}")


def _csv(path: Path, given: Rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "output"])
        writer.writeheader()
        writer.writerows(given)


def _parquet(path: Path, given: Rows) -> None:
    """One row group of all rows, as most writers make of up to a million."""
    table = pa.concat_tables(map(pa.Table.from_pylist, given.batches(5000)))
    pq.write_table(table, path, row_group_size=1 << 30)


def _arrow(path: Path, given: Rows) -> None:
    """Batches of a thousand rows, as `datasets` writes them."""
    batches = map(pa.Table.from_pylist, given.batches(1000))
    first = next(batches)
    with pa.ipc.new_stream(path, first.schema) as writer:
        for table in chain([first], batches):
            writer.write_table(table)


def _folder(path: Path, given: Rows) -> None:
    """A thousand files."""
    path.mkdir()
    for number, batch in enumerate(given.batches(int(given.megabytes / 3) + 1)):
        with (path / f"part-{number:05d}.jsonl").open("wb") as file:
            _write_lines(file, batch)


FORMS: dict[str, Callable[[Path, Rows], None]] = {
    "rows.jsonl": _jsonl,
    "rows.json": _array,
    "rows.jsonl.gz": _gzip,
    "rows.jsonl.zst": _zstd,
    "wrapped.json#train": _wrapped,
    "rows.csv": _csv,
    "rows.parquet": _parquet,
    "rows.arrow": _arrow,
    "folder": _folder,
}
"""What is written, by the path to be checked."""


def write(folder: Path, form: str, megabytes: float, *, chats: bool = False) -> tuple[str, int]:
    """Write a data set of a form; return its path, as `dataset.path` has it, and how many rows it has."""
    given = Rows(megabytes, chats=chats)
    FORMS[form](folder / form.partition("#")[0], given)
    return str(folder / form), given.count


def check(path: str, base: Path | None = None, *, checkout: Path = ROOT) -> dict[str, Any]:
    """Check a data set in a process of its own, of this code or of another checkout; return what was measured."""
    command = [sys.executable, "-c", CHECK, path, *([str(base)] if base else [])]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=checkout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
