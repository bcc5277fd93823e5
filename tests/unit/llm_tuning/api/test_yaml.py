"""YAML files: numbers as people write them, faults with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.api.yaml import load_yaml_mapping, load_yaml_objects
from llm_tuning.errors import InputError


@pytest.mark.parametrize(("text", "want"), [("5e-5", 5e-5), ("1E3", 1e3), ("-2.5e+2", -250.0), ("0.1", 0.1), ("7", 7)])
def test_a_number_is_a_number(tmp_path: Path, text: str, want: float) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"x: {text}\n")
    assert load_yaml_mapping(path) == {"x": want}


def test_a_bom_and_crlf_are_simply_read(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: two\r\n")
    assert load_yaml_mapping(path) == {"a": 1, "b": "two"}


@pytest.mark.parametrize(
    ("content", "want"),
    [
        (b"a: 1\na: 2\n", r"c\.yaml:2:1: is not valid YAML: 'a' is given twice"),
        (b"a: [1\nb: 2\n", r"c\.yaml:2:2: is not valid YAML"),
        (b"- 1\n", "must hold one YAML mapping"),
        (b"", "must hold one YAML mapping"),
        (b"a: \xff\n", "is not UTF-8"),
        (b"a: !!python/object/apply:os.system ['true']\n", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_fault_names_its_place(tmp_path: Path, content: bytes, want: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=want):
        load_yaml_mapping(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.yaml: cannot be read: No such file"):
        load_yaml_mapping(tmp_path / "none.yaml")


def test_a_file_may_hold_several_objects(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("---\na: 1\n---\nb: 5e-5\n---\n")
    assert load_yaml_objects(path) == [{"a": 1}, {"b": 5e-5}]
    with pytest.raises(InputError, match="must hold one YAML mapping"):
        load_yaml_mapping(path)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "must hold objects"),
        ("---\n- 1\n", "must hold objects"),
        ("a: 1\n---\na: [\n", r"c\.yaml:4:1: is not valid YAML"),
        ("a: \x07\n", "is not valid YAML"),
    ],
)
def test_what_holds_no_objects_is_refused(tmp_path: Path, text: str, want: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=want):
        load_yaml_objects(path)
