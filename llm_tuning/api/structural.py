"""A pydantic model as a Kubernetes structural schema.

The API server takes a part of OpenAPI only: references are written out, an Optional is a field that may be left out,
a group whose fields all have defaults gets the default {} (so that the inner ones show in `kubectl get -o yaml`), and
bounds of a map's keys become a rule. A keyword without a structural form is an error here, never dropped: the server
would otherwise allow what pydantic refuses.
"""

from __future__ import annotations

from typing import Any

from pydantic.types import JsonValue

from llm_tuning.core.model import PATTERN_WORDS, ApiModel

Schema = dict[str, Any]

RULES = "x-kubernetes-validations"
INT_OR_STRING = "x-kubernetes-int-or-string"

READABLE_PATTERN = 125
"""Characters."""

_KEPT = (
    "description",
    "type",
    "default",
    "enum",
    "format",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
"""Keywords that mean the same on both sides, in the order in which they are written."""

_DROPPED = ("title", "$defs")
_TURNED = (
    "properties",
    "additionalProperties",
    "patternProperties",
    "propertyNames",
    "items",
    "const",
    "anyOf",
    "$ref",
)


def structural_schema(model: type[ApiModel]) -> Schema:
    """Build the structural schema of `model`. Raises ValueError for a keyword that the API server has no form of."""
    schema = model.model_json_schema(by_alias=True)
    return _converted(schema, schema.get("$defs", {}), model.__name__)


def rule(expression: str, message: str, *, field: str | None = None) -> JsonValue:
    """Build a CEL rule; `field` is the path, below the object that has the rule, which a refusal names."""
    return {"rule": expression, "message": message, **({"fieldPath": field} if field else {})}


def _converted(node: Schema, definitions: dict[str, Schema], at: str) -> Schema:
    node = _written_out(node, definitions, at)
    result = {key: node[key] for key in _KEPT if key in node}
    if result.get("default", "") is None:
        del result["default"]
    if "const" in node:
        result["enum"] = [node["const"]]
    if node.get(INT_OR_STRING):
        del result["type"]
    result |= {key: value for key, value in node.items() if key.startswith("x-kubernetes-")}
    if unknown := set(node) - set(result) - {*_KEPT, *_DROPPED, *_TURNED}:
        raise ValueError(f"{at}: {', '.join(sorted(unknown))}: no structural form is known")
    if "patternProperties" in node:
        (pattern, values), *_ = node["patternProperties"].items()
        node = {**node, "additionalProperties": values, "propertyNames": {**node["propertyNames"], "pattern": pattern}}
    if "items" in node:
        result["items"] = _converted(node["items"], definitions, f"{at}[]")
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _converted(node["additionalProperties"], definitions, f"{at}{{}}")
    if node.get("type") == "number" and "minimum" in node and not float(node["minimum"]).is_integer():
        result[RULES] = [*result.get(RULES, []), _rule_of_minimum(node["minimum"])]
    if "propertyNames" in node:
        result[RULES] = [*result.get(RULES, []), _rule_of_keys(node["propertyNames"], at)]
    if (words := PATTERN_WORDS.get(node.get("pattern", ""))) and len(node["pattern"]) > READABLE_PATTERN:
        # The server shows a pattern as it is written; a rule has words.
        del result["pattern"]
        result[RULES] = [*result.get(RULES, []), rule(f"self.matches(r'{node['pattern']}')", f"must be {words}")]
    if "properties" in node:
        required = node.get("required", [])
        result["properties"] = {
            name: _with_group_default(inner, _converted(inner, definitions, f"{at}.{name}"), required=name in required)
            for name, inner in node["properties"].items()
        }
    return result


def _written_out(node: Schema, definitions: dict[str, Schema], at: str) -> Schema:
    """Put the reference of `node`, or the type beside null, into it; what stands beside it wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _written_out({**target, **_without(node, "$ref")}, definitions, at)
    if "anyOf" in node:
        kinds = [kind for kind in node["anyOf"] if kind.get("type") != "null"]
        if len(kinds) != 1:
            raise ValueError(f"{at}: a union has no structural form; make it one object with a rule")
        return _written_out({**kinds[0], **_without(node, "anyOf")}, definitions, at)
    return node


def _without(node: Schema, key: str) -> Schema:
    return {name: value for name, value in node.items() if name != key}


def _with_group_default(node: Schema, converted: Schema, *, required: bool) -> Schema:
    """Add the default {} of a plain group that is not required: pydantic writes no default made by a factory."""
    return {"default": {}, **converted} if "$ref" in node and not required else converted


def _rule_of_minimum(minimum: float) -> JsonValue:
    """Build a minimum's rule: of a value written as a whole number the server cuts it to a whole one (0.001 to 0)."""
    return rule(f"self >= {minimum!r}", f"should be greater than or equal to {minimum!r}")


def _rule_of_keys(names: Schema, at: str) -> JsonValue:
    tests = {
        "minLength": "key.size() >= {}",
        "maxLength": "key.size() <= {}",
        "pattern": "key.matches(r'{}')",
    }
    if unknown := set(names) - {*tests, "type"}:
        raise ValueError(f"{at}: {', '.join(sorted(unknown))}: no rule for a map's keys is known")
    parts = [test.format(names[key]) for key, test in tests.items() if key in names]
    limits = ", ".join(f"{key} {names[key]}" for key in tests if key in names and names[key] not in PATTERN_WORDS)
    words = PATTERN_WORDS.get(names.get("pattern", ""))
    message = f"a key must be {words} ({limits})" if words else f"a key is out of bounds ({limits})"
    return rule(f"self.all(key, {' && '.join(parts)})", message)
