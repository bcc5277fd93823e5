"""What may stand in a test's id."""

import gzip

import pytest

from tests.support.ids import ID_CHARACTERS, broken_id_rule, id_of


@pytest.mark.parametrize(
    "value", [gzip.compress(b"row"), b"\x89PNG", b"a\\n", "two\nlines", b"two\nlines", "\0", "ä", "a" * 41, b"a" * 41]
)
def test_text_that_does_not_print_or_is_long_is_named_by_its_argument(value: str | bytes) -> None:
    assert id_of(value, "content") == "content"


@pytest.mark.parametrize("value", ["plain words", b"plain words", "a" * 40, "", 3, None, {"a": "\n"}, r"\d+"])
def test_any_other_value_keeps_the_id_that_pytest_gives(value: object) -> None:
    assert id_of(value, "content") is None


@pytest.mark.parametrize("written", ["\\n", "a\\x1b", "\\u00fc", "\\\\\\n", "\n", "\x1b"], ids=repr)
def test_an_id_with_characters_that_do_not_print_is_refused(written: str) -> None:
    assert str(broken_id_rule(written)).startswith("holds characters that do not print: give one")


def test_an_id_of_more_characters_than_people_read_is_refused() -> None:
    assert broken_id_rule("a" * ID_CHARACTERS) is None
    assert str(broken_id_rule("a" * (ID_CHARACTERS + 1))).startswith("has 161 characters: an id has at most 160")


def test_a_backslash_of_the_value_itself_prints() -> None:
    assert broken_id_rule(r"hub\\.example-\\\\d") is None
