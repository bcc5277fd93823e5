"""What a unit test may not do: import torch, start a process, compute for seconds on end."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.plain_base import make_plain_base

PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
CPU_SECONDS = 10.0
"""Of the test's call, in processor time of the whole process. A unit test aims at a tenth of it: the rest is room for
slow machines and for threads that other tests left, so that it is the test that fails and not the machine."""


@dataclass
class Guard:
    """Records and refuses what heavier tiers are for, while a unit test is collected or runs."""

    name: str = ""
    found: list[str] = field(default_factory=list)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.name:
            return
        if event == "import" and arguments[0] == "torch":
            self._refuse("imports torch: its place is tests/train")
        elif event in PROCESSES:
            self._refuse(f"starts a process ({event} {arguments[0] if arguments else ''}): its place is tests/command")

    def _refuse(self, what: str) -> None:
        self.found.append(what)
        raise pytest.fail.Exception(f"{self.name} {what}", pytrace=True)


platform.platform()  # OpenAI's SDK names the machine in its headers; Python asks a process for it, once
GUARD = Guard()
sys.addaudithook(GUARD.audit)


def _guarded(name: str) -> Generator[None, Any, Any]:
    GUARD.name, GUARD.found = name, []
    try:
        result = yield
    finally:
        GUARD.name = ""
    if GUARD.found:  # the code under test may have caught the refusal, or been on another thread
        pytest.fail(f"{name} {GUARD.found[0]}", pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    return (yield from _guarded(collector.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    return (yield from _guarded(item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    before = time.process_time()
    result = yield from _guarded(item.nodeid)
    spent = time.process_time() - before
    if spent > CPU_SECONDS:
        pytest.fail(
            f"{item.nodeid} computes for {spent:.1f} s: at most {CPU_SECONDS:g} s in tests/unit, "
            "and it should be under one",
            pytrace=False,
        )
    return result


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the trainer's tests have it, its weights written by hand."""
    return make_plain_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(autouse=True)
def _without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A data check compares token ids with those of transformers, which imports torch or starts a process."""
    monkeypatch.setattr("llm_tuning.run.served_ids.transformers_version", lambda: None)
