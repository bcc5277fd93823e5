"""The commands of README and docs are typed as they are printed; here those that need no cluster.

What stands in for what is in tests/support/page_runs.py. That no command is
left out is seen in tests/docs/test_page_runs.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import page_runs
from tests.support.page_runs import (
    ON_THIS_MACHINE,
    Reader,
    Walk,
)
from tests.support.pages import (
    READMES,
    Snippet,
    yaml_documents,
)
from tests.support.source_servers import git_commit, olah
from tests.support.vllm_server import require_vllm

WITH_VLLM = {"start-ml", "readme"}
WITH_HUB = {"start-ml", "readme"}


ROWS = [{"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}.", "reward": i % 5} for i in range(40)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)


@pytest.fixture(scope="module")
def hub(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A hub that nobody here wrote, with what the pages name: it is no more real than the base on this machine."""
    repositories = tmp_path_factory.mktemp("git")
    git_commit(repositories / "models/Qwen/Qwen3-0.6B", {each.name: each.read_bytes() for each in tiny_base.iterdir()})
    git_commit(repositories / "datasets/owner/faq", {"train.jsonl": LINES.encode()})
    with olah(tmp_path_factory.mktemp("olah"), repositories) as url:
        yield url


@pytest.fixture
def reader(tmp_path: Path, tiny_base: Path, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """In a clone, with a base and data under the names of the pages."""
    walk = request.node.callspec.params.get("walk") if hasattr(request.node, "callspec") else None
    asks = walk is not None and walk.name in WITH_HUB
    made = Reader(tmp_path, hub=request.getfixturevalue("hub") if asks else None)
    shutil.copytree(tiny_base, made.folder / "base" / "qwen3-0.6b")
    (made.folder / "faq.json").write_text(json.dumps(ROWS))
    for name in ("faq.jsonl", "rated.jsonl"):
        (made.folder / name).write_text(LINES)
    try:
        yield made
    finally:
        made.terminal.close()


def at_readme(reader: Reader) -> None:
    [config] = [text for text in yaml_documents(READMES[0]) if text.startswith("mode:")]
    (reader.folder / "faq.yaml").write_text(config)


def at_contributing(reader: Reader) -> None:
    reader.prepare("git init --quiet")


PREPARE: dict[str, Callable[[Reader], None]] = {
    "readme": at_readme,
    "contributing": at_contributing,
}


@pytest.mark.parametrize("walk", ON_THIS_MACHINE, ids=lambda walk: walk.name)
def test_what_a_page_says_works_on_this_machine(walk: Walk, reader: Reader) -> None:
    if walk.name in WITH_VLLM:
        require_vllm()
    if walk.name != "start-ml":  # it says so itself
        reader.prepare("source .venv/bin/activate")
    PREPARE.get(walk.name, lambda _: None)(reader)
    try:
        reader.follow(walk)
    finally:
        for pid in reader.folder.rglob("logs/launch_llm_*.pid"):
            reader.terminal.type(f"kill -9 -- -$(cat {pid})", seconds=10)


# --- the mechanism ---------------------------------------------------------------------------------------------------


def told(text: str) -> Snippet:
    return Snippet("docs/page.md", "A part", text)


def test_a_command_that_fails_is_told_with_its_words(reader: Reader) -> None:
    reader.run(told("cd llm_tuning"))
    reader.run(told("test -f errors.py"))
    with pytest.raises(AssertionError, match=r"(?s)docs/page.md, A part: ls nowhere.*exit code 2.*No such file"):
        reader.run(told("ls nowhere"))
    with pytest.raises(AssertionError, match="exit code 1"):
        reader.run(Snippet("docs/page.md", "A part", "import sys\nsys.exit(1)\n", is_python=True))


def test_a_command_that_says_something_else_is_told(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_runs, "PROMISES", [page_runs.Promise("echo", says="^yes$")])
    reader.run(told("echo yes"))
    with pytest.raises(AssertionError, match=r"(?s)does not say '\^yes\$'.*no"):
        reader.run(told("echo no"))


def test_a_command_that_should_stay_and_ends_is_told(reader: Reader) -> None:
    reader.terminal.open_window("echo there; sleep 60", says="there", seconds=10)
    reader.terminal.close_windows()
    with pytest.raises(ChildProcessError, match="ended by itself"):
        reader.terminal.open_window("echo here", says="there", seconds=10)


def test_a_command_that_hangs_is_told(reader: Reader) -> None:
    with pytest.raises(TimeoutError, match="sleep 60"):
        reader.terminal.type("sleep 60", seconds=0.2)
