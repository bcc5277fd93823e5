"""An object as people write it, read as the API server reads it before it validates.

The server takes only the names on the wire, leaves out fields that are null (a default then applies, and a required
field is missing), and takes 1.0 for a whole number. What it and pydantic say about a spec would differ otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import ValidationError

from llm_tuning.api.rules import RuledModel
from llm_tuning.api.structural import INT_OR_STRING, Schema, structural_schema
from llm_tuning.core.model import ApiModel, input_error


class WireModel(RuledModel):
    """A model whose `parse` gives the API server's verdict."""

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Validate `values`, camelCase only; raises InputError with one Problem a field, its path below `where`."""
        try:
            return cls.model_validate(_as_read(values, _schema_of(cls)), by_alias=True, by_name=False)
        except ValidationError as error:
            raise input_error(cls, error, where=where) from None

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str = "") -> Self:
        """Read what the API server has stored, perhaps by another version: as `parse`, but drop unknown fields."""
        try:
            known = _as_read(values, _schema_of(cls))
            return cls.model_validate(known, extra="ignore", by_alias=True, by_name=False)
        except ValidationError as error:
            raise input_error(cls, error, where=where) from None


@cache
def _schema_of(model: type[ApiModel]) -> Schema:
    return structural_schema(model)


def _as_read(value: Any, schema: Schema) -> Any:
    if isinstance(value, Mapping) and ("properties" in schema or "additionalProperties" in schema):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        return {
            key: _as_read(inner, known.get(key, others) or {})
            for key, inner in value.items()
            if inner is not None or (key not in known and others is None)
        }
    if isinstance(value, list) and "items" in schema:
        return [_as_read(inner, schema["items"]) for inner in value]
    if isinstance(value, float) and value.is_integer() and (schema.get("type") == "integer" or INT_OR_STRING in schema):
        return int(value)
    return value
