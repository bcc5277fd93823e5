"""A large file is checked in memory that does not grow with it."""

from __future__ import annotations

import json
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTES = 60
CODE = """
import json, re, sys, time
from pathlib import Path
from llm_tuning.data.check import check_dataset
from llm_tuning.modes.sft import SFT
start = time.monotonic()
report = check_dataset(sys.argv[1], form=SFT.rows, tokenizer_dir=None, max_length=1024)
seconds = time.monotonic() - start
status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's memory before the exec
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) >> 10
print(json.dumps({"rows": report.rows, "kept": report.kept, "seconds": seconds, "peak_mib": peak}))
"""


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_file_of_60_mb_is_checked_in_bounded_memory(tmp_path: Path, form: str) -> None:
    text = "".join(pydoc_data.topics.topics.values())
    separator = ",\n" if form == "json" else "\n"
    path, rows, size = tmp_path / f"large.{form}", 0, 0
    with path.open("w") as file:
        file.write("[" if form == "json" else "")
        while size < MEGABYTES * 10**6:
            start = rows * 997 % (len(text) - 3000)
            row = {"prompt": f"{rows} {text[start : start + 200]}", "output": text[start : start + 2800]}
            size += file.write(separator * (rows > 0) + json.dumps(row))
            rows += 1
        file.write("]" if form == "json" else "")
    done = subprocess.run([sys.executable, "-c", CODE, path], capture_output=True, text=True, check=True)
    path.unlink()
    found = json.loads(done.stdout)
    print(f"{form}: {MEGABYTES / found['seconds']:.0f} MB/s, peak {found['peak_mib']} MiB")
    assert (found["rows"], found["kept"]) == (rows, rows)
    assert found["peak_mib"] < 90  # of which about 45 are Python and its libraries
