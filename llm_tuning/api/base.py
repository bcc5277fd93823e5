"""What every model of the API shares: strict types, camelCase on the wire, errors that name the field path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from llm_tuning.errors import InputError, Problem


class FieldError(ValueError):
    """What a validator of a whole group raises when one field of it (`ppo.klCoef`) is to blame."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


class ApiModel(BaseModel):
    """Strict, immutable, unknown fields refused; written in camelCase, read in camelCase or snake_case."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        allow_inf_nan=False,
        defer_build=True,  # --help shows fields and must not wait for validators
        protected_namespaces=(),
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Validate `values`; raises InputError with one Problem a field, its path prefixed by `where`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError([problem_of(detail, where=where) for detail in error.errors(include_url=False)]) from None


PATTERN_WORDS: dict[str, str] = {}
"""What a pattern asks for, in words; filled where the patterns stand."""


def problem_of(detail: ErrorDetails, *, where: str = "") -> Problem:
    """Turn one pydantic error into: field path, rule with the value, and the fix where the rule tells it."""
    kind, context = detail["type"], detail.get("ctx", {})
    error = context.get("error")
    path = _path(where, *detail["loc"], error.field if isinstance(error, FieldError) else "")
    got = _shown(detail["input"])
    match kind:
        case "missing":
            return Problem(path, "is required", "add it")
        case "extra_forbidden":
            return Problem(path, "is not a known field", "check the spelling or remove it")
        case "literal_error":
            return Problem(path, f"must be {context['expected']}, got {got}")
        case "value_error":
            return Problem(path, str(error))
        case "greater_than_equal":
            return Problem(path, f"must be at least {context['ge']}, got {got}")
        case "less_than_equal":
            return Problem(path, f"must be at most {context['le']}, got {got}")
        case "model_type" | "model_attributes_type" | "dict_type":
            return Problem(path, f"must be a mapping of fields, got {got}", "write its fields below it")
        case "string_pattern_mismatch" if context["pattern"] in PATTERN_WORDS:
            return Problem(path, f"must be {PATTERN_WORDS[context['pattern']]}, got {got}")
        case "finite_number":
            return Problem(path, f"must be a finite number, got {got}")
    return Problem(path, f"{_as_rule(detail['msg'])}, got {got}")


def _path(*parts: str | int) -> str:
    """As the API server writes it: `resources.tolerations[0].key`."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if part not in ("", "[key]")
    ).lstrip(".")


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_rule(message: str) -> str:
    """pydantic's `Input should be a valid integer` as `must be a valid integer`."""
    message = re.sub(r"^(Input|String|Value|List|Dictionary) should ", "must ", message)
    return message[:1].lower() + message[1:]
