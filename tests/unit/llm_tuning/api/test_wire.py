"""Objects read as the API server reads them."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

from llm_tuning.api.wire import WireModel
from llm_tuning.errors import InputError


class Thing(WireModel):
    """A thing."""

    row_count: Annotated[int, Field(ge=0, le=9)] = Field(3, description="A number.")
    share: float = Field(0.5, description="A fraction.")
    name: str = Field(description="Has to be there.")
    labels: dict[str, str] = Field(default_factory=dict, description="A map.")
    anything: dict[str, Any] = Field(default_factory=dict, description="Not looked into.")


def test_null_is_as_left_out() -> None:
    thing = Thing.parse({"name": "a", "rowCount": None, "labels": {"x": None, "y": "z"}})
    assert (thing.row_count, thing.labels) == (3, {"y": "z"})


def test_a_whole_number_may_be_written_as_a_fraction() -> None:
    thing = Thing.parse({"name": "a", "rowCount": 2.0, "share": 1})
    assert (thing.row_count, thing.share) == (2, 1.0)


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ({"name": None}, "it.name: is required"),
        ({"name": "a", "row_count": 1}, "it.row_count: is not a known field; did you mean rowCount"),
        ({"name": "a", "other": None}, "it.other: is not a known field"),
        ({"name": "a", "rowCount": 2.5}, "it.rowCount: must be a valid integer, got 2.5"),
        ({"name": "a", "rowCount": "2"}, "it.rowCount: must be a valid integer, got '2'"),
        ({"name": "a", "rowCount": True}, "it.rowCount: must be a valid integer, got True"),
    ],
)
def test_all_else_is_strict(values: dict[str, Any], want: str) -> None:
    with pytest.raises(InputError, match=want):
        Thing.parse(values, where="it")


def test_what_another_version_has_stored_is_read_without_the_fields_it_alone_knows() -> None:
    thing = Thing.read({"name": "a", "rowCount": 2.0, "newer": {"x": 1}, "labels": None})
    assert (thing.name, thing.row_count, thing.labels) == ("a", 2, {})
    with pytest.raises(InputError, match=r"x\.rowCount: must be at most 9"):
        Thing.read({"name": "a", "rowCount": 10}, where="x")
