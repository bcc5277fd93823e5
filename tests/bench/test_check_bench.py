"""The data check: megabytes a second of chats, without tools and with them, and the peak of memory for 1 GB.

`BENCH_BEFORE=/path/of/another/checkout make bench` measures that code beside this one, in turns.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from tests.support import large_files
from tests.support.zoo import make_base

pytestmark = [pytest.mark.timeout(3600)]

MEGABYTES = float(os.environ.get("BENCH_MEGABYTES", "100"))
LARGE_MEGABYTES = float(os.environ.get("BENCH_LARGE_MEGABYTES", "1000"))
ROUNDS = 3
MOST_TIME_WITH_TOOLS = 1.5
"""Of the time a megabyte of chats without tools."""


def test_megabytes_a_second_of_chats(tmp_path: Path, tokenizer_dir: Path) -> None:
    path, _ = large_files.write(tmp_path, "rows.jsonl", MEGABYTES, chats=True)
    before = Path(os.environ["BENCH_BEFORE"]) if "BENCH_BEFORE" in os.environ else None
    for base in (None, tokenizer_dir):
        seconds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, checkout in (("now", large_files.ROOT), ("before", before)):
                if checkout is not None:
                    seconds.setdefault(name, []).append(large_files.check(path, base, checkout=checkout)["cpu"])
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        said = ", ".join(f"{name} {MEGABYTES / value:.1f} MB/s" for name, value in medians.items())
        ratio = f", ratio {medians['now'] / medians['before']:.2f}" if before else ""
        print(f"\ncheck of {MEGABYTES:.0f} MB of chats {'with' if base else 'without'} tokens: {said}{ratio}")
        assert not before or medians["now"] <= 1.2 * medians["before"]


@pytest.mark.parametrize("with_tokens", [False, True])
def test_time_a_megabyte_with_tools(tmp_path: Path, with_tokens: bool) -> None:
    base = make_base("qwen3", tmp_path / "base") if with_tokens else None  # a template that has tools
    kinds = {"none": {"chats": True}, **{name: {"tools": name} for name in ("simple", "bounded", "own")}}
    written = {}
    for name, kind in kinds.items():
        (tmp_path / name).mkdir()
        path, _ = large_files.write(tmp_path / name, "rows.jsonl", MEGABYTES, **kind)
        written[name] = path, Path(path).stat().st_size / 10**6
    seconds: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, (path, megabytes) in written.items():
            found = large_files.check(path, base)
            assert found["kept"] == found["rows"]
            seconds.setdefault(name, []).append(found["cpu"] / megabytes)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        what = f"check {'with' if with_tokens else 'without'} tokens, tools {name}"
        print(f"\n{what}: {1 / value:.1f} MB a CPU second, {value / medians['none']:.2f} of the time without tools")
    if with_tokens:  # as a run checks them; without a base reading the JSON of so many small values is most of it
        assert medians["simple"] <= MOST_TIME_WITH_TOOLS * medians["none"]
        assert medians["bounded"] <= MOST_TIME_WITH_TOOLS * medians["none"]


@pytest.mark.parametrize("mode", ["ppo", "dpo"])
def test_memory_of_a_gigabyte_of_rated_rows(tmp_path: Path, mode: str) -> None:
    path, _ = large_files.write(tmp_path, "rows.jsonl", LARGE_MEGABYTES, rated=True)
    found = large_files.check(path, mode=mode)
    print(f"\n{mode}: {LARGE_MEGABYTES / found['seconds']:.0f} MB/s, peak {found['peak_mib']} MiB")
    assert found["peak_mib"] < 200


@pytest.mark.parametrize("form", large_files.FORMS)
def test_memory_of_a_gigabyte(tmp_path: Path, form: str) -> None:
    path, _ = large_files.write(tmp_path, form, LARGE_MEGABYTES)
    found = large_files.check(path)
    print(f"\n{form}: {LARGE_MEGABYTES / found['seconds']:.0f} MB/s, peak {found['peak_mib']} MiB")
    assert found["peak_mib"] < 200
