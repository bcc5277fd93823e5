"""Write each rule over several fields once: as a CEL rule for the API server and a validator for everyone else.

A rule has one message. Where the two languages have to say it apart, the CEL expression and the Python predicate stand
side by side in one `Rule`, and the corpus of specs holds their verdicts to each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator
from pydantic.alias_generators import to_snake

from llm_tuning.api.structural import RULES, rule
from llm_tuning.core.model import ApiModel, FieldError

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Rule:
    """One rule about a group; `field` is the field, below the group, that a refusal names (none: the group)."""

    cel: str
    holds: Callable[[Any], bool]
    message: str
    field: str = ""

    def check(self, group: ApiModel) -> None:
        """Raise FieldError or ValueError if `group` breaks the rule."""
        if not self.holds(group):
            raise FieldError(self.field, self.message) if self.field else ValueError(self.message)

    def written(self) -> Any:
        """Return the rule as the CRD has it."""
        return rule(self.cel, self.message, field=f".{self.field}" if self.field else None)


def exactly_one_of(*names: str) -> Rule:
    """Build the rule that of these fields, by their names on the wire, one is given and the others are not."""
    given = ", ".join(f"has(self.{name})" for name in names)
    return Rule(
        f"[{given}].exists_one(is_given, is_given)" if len(names) > 2 else given.replace(",", " !="),
        lambda group: sum(getattr(group, to_snake(name)) is not None for name in names) == 1,
        f"must have exactly one of {', '.join(names[:-1])} and {names[-1]}",
    )


class RuledModel(ApiModel):
    """A group with rules of its own in RULES, besides those of its fields."""

    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for each in type(self).RULES:
            each.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        if cls.RULES:
            handler.resolve_ref_schema(schema)[RULES] = [each.written() for each in cls.RULES]
        return schema


def cel_literal(value: object, *, number: bool = False) -> str:
    """Write a default in CEL; `number` for fields that take fractions, which CEL compares with doubles only."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, int | float):
        return repr(float(value)) if number else repr(value)
    raise ValueError(f"{value!r} has no form in CEL here: give the field a plain default")
