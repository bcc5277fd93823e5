"""Models as structural schemas: what is turned, and what is refused rather than dropped."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, StringConstraints

from llm_tuning.api.structural import RULES, structural_schema
from llm_tuning.core.model import ApiModel


class Inner(ApiModel):
    """A group."""

    size: Annotated[int, Field(ge=1, le=3)] = Field(2, description="How large.")


class Outer(ApiModel):
    """All of it."""

    kind_of: Literal["a"] = Field("a", description="One value.")
    always: Inner = Field(default_factory=Inner, description="Has defaults.")
    sometimes: Inner | None = Field(None, description="May be left out.")
    needed: Inner = Field(description="Has to be there.")
    share: Annotated[float, Field(ge=0.5, le=1.5)] | None = Field(None, description="Fractional bounds.")
    labels: Annotated[
        dict[
            Annotated[str, StringConstraints(max_length=5, pattern="^a")],
            Annotated[str, StringConstraints(max_length=9)],
        ],
        Field(max_length=4),
    ] = Field(default_factory=dict, description="A map.")


SCHEMA = structural_schema(Outer)["properties"]


def test_a_group_is_written_out_and_has_a_default_where_it_may_be_left_out() -> None:
    size = {"description": "How large.", "type": "integer", "default": 2, "minimum": 1, "maximum": 3}
    group = {"type": "object", "properties": {"size": size}}
    assert SCHEMA["always"] == {"description": "Has defaults.", "default": {}, **group}
    assert SCHEMA["sometimes"] == {"description": "May be left out.", **group}
    assert SCHEMA["needed"] == {"description": "Has to be there.", **group}
    assert structural_schema(Outer)["required"] == ["needed"]


def test_one_value_is_an_enum() -> None:
    assert SCHEMA["kindOf"] == {"description": "One value.", "type": "string", "default": "a", "enum": ["a"]}


def test_a_fractional_minimum_is_a_rule_too() -> None:
    """The API server cuts it to 0 for a value written as a whole number."""
    assert SCHEMA["share"]["minimum"] == 0.5
    assert SCHEMA["share"][RULES][0]["rule"] == "self >= 0.5"


def test_bounds_of_keys_become_a_rule() -> None:
    assert SCHEMA["labels"]["additionalProperties"] == {"type": "string", "maxLength": 9}
    assert SCHEMA["labels"]["maxProperties"] == 4
    assert SCHEMA["labels"][RULES][0]["rule"] == "self.all(key, key.size() <= 5 && key.matches(r'^a'))"


@pytest.mark.parametrize(
    ("annotation", "want"),
    [
        (int | str, "a union has no structural form"),
        (Annotated[float, Field(gt=0)], "exclusiveMinimum: no structural form is known"),
        (Annotated[int, Field(multiple_of=2)], "multipleOf: no structural form is known"),
        (tuple[int, int], "prefixItems: no structural form is known"),
    ],
)
def test_what_has_no_form_is_refused(annotation: Any, want: str) -> None:
    class Odd(ApiModel):
        field: annotation

    with pytest.raises(ValueError, match=rf"Odd\.field: .*{want}"):
        structural_schema(Odd)
