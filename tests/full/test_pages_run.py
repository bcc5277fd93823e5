"""The commands of README and docs are typed as they are printed; here those that need no cluster.

What stands in for what is in tests/support/page_runs.py. A command on a page that no test runs and that is not listed
there with a reason fails here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import page_runs
from tests.support.page_runs import (
    NOT_RUN,
    ON_A_CLUSTER,
    ON_THIS_MACHINE,
    PROMISES,
    RUN_ELSEWHERE,
    RUN_ONCE,
    SUBSTITUTIONS,
    WALKED_PAGES,
    Reader,
    Walk,
    not_accounted_for,
)
from tests.support.pages import (
    PAGES,
    PLACEHOLDER,
    READMES,
    ROOT,
    SHELLS,
    Snippet,
    blocks,
    shown_name,
    snippets,
    yaml_documents,
)
from tests.support.source_servers import git_commit, olah
from tests.support.vllm_server import require_vllm

WITH_VLLM = {"start-ml", "readme"}
WITH_HUB = {"start-ml", "readme"}
ALL = [snippet for page in WALKED_PAGES for snippet in snippets(page)]
LANGUAGES = {*SHELLS, "python", "yaml", "json", "text", "{toctree}"}
PROGRAMS = ("bash", "curl", "docker", "helm", "kubectl", "make", "mlflow", "pip", "python", "source", "tune-llm")


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


def test_every_command_is_run_or_has_its_reason() -> None:
    assert not_accounted_for(ALL) == [], "add the part of the page to a walk in tests/support/page_runs.py"
    new = Snippet("docs/install.md", "Network", "kubectl get networkpolicies")
    differs = Snippet("charts/llm-tuning/README.md", "Uninstall", "helm uninstall llm-tuning")
    assert not_accounted_for([new, differs]) == [new, differs]


def test_every_part_is_followed_once_and_has_something_to_type() -> None:
    parts = [part for walk in (*ON_THIS_MACHINE, *ON_A_CLUSTER) for part in walk.parts] + list(RUN_ELSEWHERE)
    assert len(parts) == len(set(parts))
    empty = [part for part in parts if part not in {(each.page, each.heading) for each in ALL}]
    assert empty == [], "there is nothing to run there any more"


def test_what_is_said_to_be_run_elsewhere_is_taken_from_the_page_there() -> None:
    for (page, _), file in RUN_ELSEWHERE.items():
        assert Path(page).name in (ROOT / file).read_text(), f"{file} does not read {page}"
    for command, page in RUN_ONCE.items():
        assert command in [each.text for walk in ON_THIS_MACHINE for each in walk.snippets() if each.page == page]


@pytest.mark.parametrize("pattern", [*NOT_RUN, *(p.pattern for p in PROMISES), *(s.pattern for s in SUBSTITUTIONS)])
def test_every_line_of_the_tables_is_about_a_command(pattern: str) -> None:
    find = re.search if pattern in {s.pattern for s in SUBSTITUTIONS} else re.match
    assert [each for each in ALL if find(pattern, each.text)]


@pytest.mark.parametrize("page", sorted({*PAGES, *WALKED_PAGES}), ids=shown_name)
def test_commands_stand_in_blocks_of_commands(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"^```(\S+)$", text, flags=re.MULTILINE)) <= LANGUAGES
    assert not re.search(r"^[ >-]+```", text, flags=re.MULTILINE), "a block within a list is not looked at"
    lines = [line for block in blocks(page, "text") for line in block.splitlines()]
    assert [line for line in lines if line.split(" ")[0] in PROGRAMS and not PLACEHOLDER.search(line)] == []


@pytest.mark.parametrize("readme", READMES[1:], ids=shown_name)
def test_the_readmes_show_the_same_commands(readme: Path) -> None:
    def commands(page: Path) -> list[str]:
        return [re.sub(r" +#.*", "", each.text) for each in snippets(page)]

    assert commands(readme) == commands(READMES[0])


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
