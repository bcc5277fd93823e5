"""Pages and cursors."""

from __future__ import annotations

import pytest

from llm_tuning.openai_api.errors import ApiError
from llm_tuning.openai_api.paging import page

ITEMS = list("abcdef")


def _page(after: str | None, limit: int, *, sorts: bool = False) -> tuple[str, bool]:
    is_behind = (lambda item, cursor: item > cursor) if sorts else None
    found, more = page(ITEMS, after=after, limit=limit, id_of=lambda item: item, is_behind=is_behind)
    return "".join(found), more


@pytest.mark.parametrize(
    ("after", "limit", "want"),
    [
        (None, 2, ("ab", True)),
        ("", 2, ("ab", True)),
        ("b", 3, ("cde", True)),
        ("b", 4, ("cdef", False)),
        ("f", 4, ("", False)),
        (None, 6, ("abcdef", False)),
    ],
)
def test_a_page_begins_behind_its_cursor(after: str | None, limit: int, want: tuple[str, bool]) -> None:
    assert _page(after, limit) == want


def test_a_cursor_that_is_gone_keeps_its_place_where_ids_sort() -> None:
    assert _page("bb", 2, sorts=True) == ("cd", True)
    assert _page("z", 2, sorts=True) == ("", False)
    with pytest.raises(ApiError) as caught:
        _page("bb", 2)
    assert caught.value.param == "after"
