"""Many processes, one volume, one download; and a full disk."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_tuning.sources import claim
from llm_tuning.sources.claim import claimed
from llm_tuning.sources.store import stored, unfinished, verify
from tests.support.hub_server import Answer, hub_server, tiny_model
from tests.support.small_disk import run_on_small_disk
from tests.support.source_fetchers import fetcher, moved

WEIGHTS = 8_000_000


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ten_at_once_make_one_download(tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.model("o/n", tiny_model(WEIGHTS))
        hub.once(Answer(chunk_pause_seconds=0.01), of="model.safetensors")
        fetchers = [fetcher(hub.url, "hf://o/n", tmp_path) for _ in range(10)]
        counts = sorted(map(moved, fetchers))
    (found,) = stored(tmp_path)
    assert counts == [0] * 9 + [found.record.size]
    assert hub.bytes_sent == found.record.size
    assert verify(found) == []
    assert not unfinished(tmp_path)


def test_one_that_is_killed_is_taken_over_at_once_by_one_that_waits(tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.model("o/n", tiny_model(WEIGHTS))
        hub.once(Answer(chunk_pause_seconds=0.05), of="model.safetensors")
        first = fetcher(hub.url, "hf://o/n", tmp_path)
        wait_until(lambda: hub.bytes_sent > WEIGHTS // 4)
        second = fetcher(hub.url, "hf://o/n", tmp_path)
        wait_until(lambda: sum("revision" in request.path for request in hub.requests) == 2)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        there = part_size(tmp_path)
        assert moved(second) < WEIGHTS
        starts = [request.start for request in hub.file_requests() if request.path.endswith("model.safetensors")]
    assert starts == [0, there]
    (found,) = stored(tmp_path)
    assert verify(found) == []


def part_size(root: Path) -> int:
    (part,) = root.glob(".work/*/parts/model.safetensors")
    return part.stat().st_size


def test_a_holder_on_another_machine_is_heard_and_only_a_silent_one_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    monkeypatch.setattr(claim, "_boot", lambda: "another machine")
    with claimed(work, is_done=lambda: False, waiting=pytest.fail, beat_seconds=0.05) as holder:
        monkeypatch.setattr(claim, "_boot", lambda: "this machine")
        asked: list[float] = []

        def waiting() -> None:
            asked.append(time.monotonic())
            if len(asked) == 3:  # more than a second: several times the silence that is allowed
                raise InterruptedError

        with pytest.raises(InterruptedError), claimed(work, is_done=lambda: False, waiting=waiting, stale_seconds=0.4):
            pytest.fail("two fetch at once")
        assert holder is not None
        holder._ended.set()  # it hangs
        with claimed(work, is_done=lambda: False, waiting=lambda: None, stale_seconds=0.4, beat_seconds=0.05) as second:
            assert second is not None
            assert not second.lost
            assert claim._newest(work) == 2


def test_a_holder_that_was_only_paused_learns_that_it_has_lost(tmp_path: Path) -> None:
    work = tmp_path / "work"
    with claimed(work, is_done=lambda: False, waiting=pytest.fail, beat_seconds=0.05) as holder:
        assert holder is not None
        (work / "claim.2").write_text("another\n0\n")
        wait_until(lambda: holder.lost)


def test_a_released_claim_is_free_at_once_and_what_is_done_needs_none(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for _ in range(3):
        with claimed(work, is_done=lambda: False, waiting=pytest.fail, stale_seconds=1000) as holder:
            assert holder is not None
    with claimed(work, is_done=lambda: True, waiting=pytest.fail) as holder:
        assert holder is None


FULL = """
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.hub import Hub
from llm_tuning.sources.reasons import SourceRefused
from llm_tuning.sources.uri import parse_uri
import shutil
origin = Hub({url!r})
def get():
    return fetch(parse_uri("hf://o/n", "model"), disk / "sources", origin=origin)
try:
    get()
except SourceRefused as error:
    print(error.reason, "still needs" in str(error), "bytes" in str(error))
usage = shutil.disk_usage
import llm_tuning.sources.filling as filling
filling.shutil.disk_usage = lambda path: usage(path)._replace(free=10**12)  # a quota that statfs does not tell
try:
    get()
except SourceRefused as error:
    print(error.reason, "needs more than that" in str(error))
print(list(disk.glob("sources/hf")))
"""


def test_a_volume_without_room_is_refused_before_and_one_that_gets_full_during_the_fetch(tmp_path: Path) -> None:
    with hub_server() as hub:
        hub.model("o/n", tiny_model(WEIGHTS))
        said = run_on_small_disk(tmp_path / "disk", FULL.format(url=hub.url), kibibytes=6000)
    assert said.splitlines() == ["VolumeTooSmall True True", "VolumeTooSmall True", "[]"]
    assert hub.file_requests(), "the second try began"


def test_a_read_only_volume_serves_what_it_has(tmp_path: Path) -> None:
    code = """
from llm_tuning.errors import InputError
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.hub import Hub
from llm_tuning.sources.uri import parse_uri
first = fetch(parse_uri("hf://o/n", "model"), disk / "sources", origin=Hub({url!r}))
remount("ro")
print(fetch(parse_uri("hf://o/n", "model"), disk / "sources", origin=Hub({url!r})).path == first.path)
try:
    fetch(parse_uri("hf://o/m", "model"), disk / "sources", origin=Hub({url!r}))
except InputError as error:
    print("cannot be written" in str(error))
"""
    with hub_server() as hub:
        hub.model("o/n", tiny_model(1000))
        hub.model("o/m", tiny_model(1000))
        said = run_on_small_disk(tmp_path / "disk", code.format(url=hub.url), kibibytes=20000)
    assert said.split() == ["True", "True"]
