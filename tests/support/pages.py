"""READMEs and docs as tests read them: their code blocks, command lines and anchors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted(ROOT.glob("README*.md"))
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("charts/*/README.md"))]
SHELLS = ("", "sh", "bash", "shell", "console")
PLACEHOLDER = re.compile(r"<\w+>|\[\w+\]|\.\.\.")


def shown_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """Texts of the code blocks in one of the languages."""
    found = re.findall(r"^```(\S*)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


@dataclass(frozen=True)
class Snippet:
    """What a page tells its reader to type: a command, or a block of Python."""

    page: str
    heading: str
    text: str
    is_python: bool = False

    def __str__(self) -> str:
        return f"{self.page}, {self.heading}: {self.text}"


def snippets(page: Path) -> list[Snippet]:
    """In the order of the page; a command that goes on in the next line is one."""
    return list(_snippets(shown_name(page), page.read_text(encoding="utf-8")))


def _snippets(name: str, text: str) -> Iterator[Snippet]:
    heading = ""
    for title, language, code in re.findall(r"^#+ (.+)$|^```(\S*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE):
        heading = title or heading
        if not title and language == "python":
            yield Snippet(name, heading, code, is_python=True)
        elif not title and language in SHELLS:
            for command in re.findall(r"^(?!\s*(?:#|$))(?:.*\\\n)*.*$", code, flags=re.MULTILINE):
                yield Snippet(name, heading, command)


def yaml_documents(page: Path) -> list[str]:
    """The documents of its YAML blocks."""
    texts = (re.split(r"^---\n", block, flags=re.MULTILINE) for block in blocks(page, "yaml"))
    return [document for documents in texts for document in documents]


def command_lines(page: Path) -> list[str]:
    """Lines of the shell blocks, continued ones joined, without `cd X &&` and comments; usage lines left out."""
    text = "\n".join(blocks(page, *SHELLS)).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").split(" && ")[-1].strip() for line in text.splitlines()]
    return [line for line in lines if line and not PLACEHOLDER.search(line)]


def named_commands(page: Path) -> list[str]:
    """Commands in the running text, of a verb and what it is about at least."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
    return [span for span in spans if span.count(" ") > 1 and not PLACEHOLDER.search(span)]


def lines_starting_with(*starts: str) -> list[object]:
    """Parameters of a test: every such command of every page, in its blocks and in its text."""
    return [
        pytest.param(line, id=f"{shown_name(page)}: {line.split(' # ')[0].strip()[:60]}")
        for page in PAGES
        for line in (*command_lines(page), *named_commands(page))
        if line.startswith(starts)
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
