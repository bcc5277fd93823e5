"""Links within the repository lead somewhere, anchors included. `make docs` asks the same of the site's own pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import PAGES, READMES, ROOT, anchors, shown_name


def links(page: Path) -> list[tuple[str, str]]:
    """Path and anchor of each link that leads to no other host."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text)
    return [(path, anchor) for path, anchor in found if "://" not in path]


@pytest.mark.parametrize("page", PAGES, ids=shown_name)
def test_files_and_anchors_of_links_exist(page: Path) -> None:
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("readme", READMES, ids=shown_name)
def test_named_places_exist(readme: Path) -> None:
    places = re.findall(r"^((?:llm_tuning|docs|examples|tests)/\S*)  ", readme.read_text(), flags=re.MULTILINE)
    assert len(places) > 5
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    folder = ROOT / "docs"
    named = re.findall(r"^([\w/-]+)$", (folder / "index.md").read_text(), flags=re.MULTILINE)
    assert set(folder.rglob("*.md")) == {folder / "index.md", *(folder / f"{name}.md" for name in named)}


def test_the_readmes_tell_the_same() -> None:
    """One structure in each language: the same headings by level, code, and links but to each other."""

    def shape(readme: Path) -> tuple[list[str], list[str], list[tuple[str, str]]]:
        text = readme.read_text(encoding="utf-8")
        code = re.findall(r"^```(\w+)?$", text, flags=re.MULTILINE)
        others = {path.name for path in READMES}
        targets = sorted({link for link in links(readme) if link[0] not in others})
        return re.findall(r"^(#+) ", text, flags=re.MULTILINE), code, targets

    first, *others = READMES
    for other in others:
        assert shape(other) == shape(first), other.name
        assert f"({other.name})" in first.read_text(encoding="utf-8")
        assert f"({first.name})" in other.read_text(encoding="utf-8")
