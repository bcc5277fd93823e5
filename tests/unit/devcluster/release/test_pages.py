"""CONTRIBUTING and SECURITY point at what is there, and give no address that nobody reads."""

from __future__ import annotations

import re

import pytest

from devcluster.release.running import ROOT

PAGES = ["CONTRIBUTING.md", "SECURITY.md"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / name).read_text())
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        assert (ROOT / path).exists(), link
        if heading:
            titles = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, link


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)", text)) <= targets
    files = re.findall(r"`((?:llm_tuning|operator|tests|release|requirements)/[\w./]+\w)`", text)
    assert [path for path in files if not path.rpartition("/")[2][:2].isupper() and not (ROOT / path).exists()] == []


def test_the_table_of_tests_has_every_folder_and_each_tier_its_mark() -> None:
    named = set(re.findall(r"^\| `tests/(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE))
    assert named == {folder.name for folder in (ROOT / "tests").iterdir() if any(folder.glob("**/*.py"))}
    marks = set(re.findall(r'^  "(\w+): ', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))
    assert named - {"support", "gpu"} == marks - {"alone"}, "those two hold no tests of pytest"


def test_there_is_no_invented_address() -> None:
    assert not re.search(r"[\w.]+@[\w-]+\.\w+|mailto:", (ROOT / "SECURITY.md").read_text())
