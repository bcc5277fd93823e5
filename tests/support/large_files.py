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
from llm_tuning.modes import MODES
base = Path(sys.argv[3]) if len(sys.argv) > 3 else None
wall, cpu = time.monotonic(), time.process_time()
report = check_dataset(sys.argv[1], form=MODES[sys.argv[2]].rows, tokenizer_dir=base, max_length=1024)
seconds, cpu = time.monotonic() - wall, time.process_time() - cpu
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory before the exec
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) >> 10
print(json.dumps({"rows": report.rows, "kept": report.kept, "seconds": seconds, "cpu": cpu, "peak_mib": peak}))
"""


class Rows:
    """Different rows of about 3 kB, of `megabytes` (10^6 bytes) as JSON together: prose with quotes and breaks.

    They have a prompt and its output, which may be `rated` (three answers to a prompt), or are `chats` of four turns.
    With `tools` the chats declare three tools each, as one of 20 sets, and call one: "simple" ones have types and
    enums, "bounded" ones bounds, patterns and alternatives too, "own" ones are different in each row.
    """

    def __init__(self, megabytes: float, *, chats: bool = False, rated: bool = False, tools: str = "") -> None:
        self.megabytes, self.chats, self.rated, self.tools = megabytes, chats, rated, tools
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        text = "".join(pydoc_data.topics.topics.values())
        left = self.megabytes * 10**6
        while left > 0:
            start = self.count * 997 % (len(text) - 3000)
            number = self.count // 3 if self.rated else self.count
            asked = number * 997 % (len(text) - 3000)
            question, answer = f"{number} {text[asked : asked + 200]}", text[start : start + 2800]
            row: dict[str, Any] = {"prompt": question, "output": answer}
            if self.rated:
                row["reward"] = self.count % 3
            if self.tools:
                row = self._with_tools(question, answer)
                left -= len(json.dumps(row["tools"])) + 300
            elif self.chats:
                parts = [question, answer[:900], answer[900:1000], answer[1000:]]
                roles = ("user", "assistant") * 2
                row = {"messages": [{"role": r, "content": part} for r, part in zip(roles, parts, strict=True)]}
            left -= len(question) + len(answer) + 100  # what quotes, names and line breaks add
            self.count += 1
            yield row

    def _with_tools(self, question: str, answer: str) -> dict[str, Any]:
        kind = self.count if self.tools == "own" else self.count % 20
        place = {"type": "string", "description": "The city, or its code."}
        unit = {"type": "string", "enum": ["celsius", "fahrenheit"], "description": "What degrees are given in."}
        days: dict[str, Any] = {"type": "integer", "description": "How many days from today."}
        if self.tools == "bounded":
            days |= {"minimum": 1, "maximum": 14}
            place = {"anyOf": [place | {"minLength": 1, "pattern": "^[A-Z]"}, {"type": "null"}]}
        parameters = {
            "type": "object",
            "properties": {"place": place, "unit": unit, "days": days},
            "required": ["place", "days"],
            "additionalProperties": False,
        }
        names = [f"{name}_{kind}" for name in ("forecast", "history", "warnings")]
        tools = [
            {"type": "function", "function": {"name": name, "description": "About weather.", "parameters": parameters}}
            for name in names
        ]
        arguments = {"place": f"City {self.count}", "unit": "celsius", "days": 1 + self.count % 14}
        call = {"name": names[self.count % 3], "arguments": json.dumps(arguments)}
        calls = [{"id": f"call_{self.count}", "type": "function", "function": call}]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": f"call_{self.count}", "content": answer[:900]},
            {"role": "assistant", "content": answer[900:]},
        ]
        return {"messages": messages, "tools": tools}

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


def write(folder: Path, form: str, megabytes: float, **kind: Any) -> tuple[str, int]:
    """Write a data set of a form; return its path, as `dataset.path` has it, and how many rows it has."""
    given = Rows(megabytes, **kind)
    FORMS[form](folder / form.partition("#")[0], given)
    return str(folder / form), given.count


def check(path: str, base: Path | None = None, *, mode: str = "sft", checkout: Path = ROOT) -> dict[str, Any]:
    """Check a data set in a process of its own, of this code or of another checkout; return what was measured."""
    command = [sys.executable, "-c", CHECK, path, mode, *([str(base)] if base else [])]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=checkout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
