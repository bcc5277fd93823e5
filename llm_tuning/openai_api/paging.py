"""OpenAI's lists: a page, and the cursor `after` that the next one begins behind. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llm_tuning.openai_api.errors import invalid

T = TypeVar("T")


def page(
    items: Sequence[T],
    *,
    after: str | None,
    limit: int,
    id_of: Callable[[T], str],
    is_behind: Callable[[T, str], bool] | None = None,
) -> tuple[list[T], bool]:
    """Return the page of `items` (in the list's order) behind the id `after`, and whether there are more.

    `is_behind` says whether an item comes behind an id that is gone, where ids carry their place (files, events): a
    script that deletes what it lists goes on then. Raises ApiError for a cursor that says nothing.
    """
    start = 0
    if after:
        start = next((place + 1 for place, item in enumerate(items) if id_of(item) == after), -1)
        if start < 0 and is_behind is not None:
            start = next((place for place, item in enumerate(items) if is_behind(item, after)), len(items))
        if start < 0:
            raise invalid("after", f"must be an id of this list, got {after[:100]!r}; list from the start again")
    return list(items[start : start + limit]), start + limit < len(items)
