"""A function's docstring says what the function does, so it begins with a verb (docs/glossary.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = [
    "operator/tuning_operator",
    "llm_tuning/errors.py",
    *sorted(f"llm_tuning/{path.parent.name}" for path in (ROOT / "llm_tuning").glob("*/__init__.py")),
]
NO_VERBS = re.compile(
    r"an?|the|its?|this|that|these|those|they|their|there|we|our|you|your|one|two|each|all|every|everything|any|some|both"
    r"|no|none|nothing|not|never|only|also|what|whether|which|who|whose|where|when|why|how|as|by|for|from|in|of|on|at|to"
    r"|with|after|before|between|until|while|if|because|since|more|same|now|here|seconds|bytes|raises|returns",
    re.IGNORECASE,
)


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield place and first line of each function's docstring; properties are left out: they say what they are."""
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_property and (text := ast.get_docstring(node)):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", text.splitlines()[0]


def _begins_with_a_verb(text: str) -> bool:
    """Return False for what is surely no verb: a word of NO_VERBS, code, or a name."""
    first = re.match(r"[A-Z][a-z]+(?![\w'])", text)
    return first is not None and NO_VERBS.fullmatch(first.group()) is None


@pytest.mark.parametrize("room", ROOMS)
def test_a_docstring_begins_with_a_verb(room: str) -> None:
    wrong = [f"{place}: {text}" for place, text in _docstrings(ROOT / room) if not _begins_with_a_verb(text)]
    assert not wrong, "write what the function does, as in 'Return ...':\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text", ["The rows.", "A row.", "Whether it is so.", "`rows` as text.", "sha256 of it.", "It's so.", "As `read`."]
)
def test_what_begins_with_no_verb_is_found(text: str) -> None:
    assert not _begins_with_a_verb(text)
