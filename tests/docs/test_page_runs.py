"""No command of README and docs is left out: a test runs it, in tests/full, or it stands with its reason in a table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.page_runs import (
    NOT_RUN,
    ON_A_CLUSTER,
    ON_THIS_MACHINE,
    PROMISES,
    RUN_ELSEWHERE,
    RUN_ONCE,
    SUBSTITUTIONS,
    WALKED_PAGES,
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
)

ALL = [snippet for page in WALKED_PAGES for snippet in snippets(page)]
LANGUAGES = {*SHELLS, "python", "yaml", "json", "text", "{toctree}"}
PROGRAMS = ("bash", "curl", "docker", "helm", "kubectl", "make", "mlflow", "pip", "python", "source", "tune-llm")


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
