"""What every model of the API shares: strict types, camelCase on the wire, errors that name the field path."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from llm_tuning.core.suggestions import did_you_mean
from llm_tuning.errors import InputError, Problem


class FieldError(ValueError):
    """What a validator of a whole group raises when one field of it (`lora.rank`) is to blame."""

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
            raise input_error(cls, error, where=where) from None


def input_error(model: type[BaseModel], error: ValidationError, *, where: str = "") -> InputError:
    """Build the error of a whole `model`: one Problem a field, its path prefixed by `where`."""
    return InputError([_problem_of(detail, model, where=where) for detail in error.errors(include_url=False)])


PATTERN_WORDS: dict[str, str] = {}
"""What a pattern asks for, in words; filled where the patterns stand."""


def _problem_of(detail: ErrorDetails, model: type[BaseModel], *, where: str) -> Problem:
    """Turn one pydantic error into: field path, rule with the value, and the fix where the rule has one."""
    kind, context = detail["type"], detail.get("ctx", {})
    error = context.get("error")
    path = _path(where, *detail["loc"], error.field if isinstance(error, FieldError) else "")
    got = _shown(detail["input"])
    match kind:
        case "missing":
            return Problem(path, "is required", "add it")
        case "extra_forbidden":
            *above, name = detail["loc"]
            fix = did_you_mean(str(name), _fields_at(model, above), otherwise="check the spelling or remove it")
            return Problem(path, "is not a known field", fix)
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


def _fields_at(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """Return the fields, as they are written, of the model that `place` leads to from `model`."""
    for name in place:
        for field_name, field in model.model_fields.items():
            if name in (field_name, field.alias):
                model = _model_in(field.annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the model under Annotated, Optional and list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _path(*parts: str | int) -> str:
    """Join a path as the API server writes it: `resources.tolerations[0].key`."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if part not in ("", "[key]")
    ).lstrip(".")


def _shown(value: object) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _as_rule(message: str) -> str:
    """Rewrite pydantic's `Input should be a valid integer` as `must be a valid integer`."""
    message = re.sub(r"^(Input|String|Value|List|Dictionary) should ", "must ", message)
    return message[:1].lower() + message[1:]
