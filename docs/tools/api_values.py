"""charts/llm-tuning-api/values.schema.json: what the API's settings take, and what charts of ours take alike.

`bases`, `limits` and their like are the fields of `llm_tuning.openai_api.bases.Settings`; images, labels and placement
are taken from the schema of charts/llm-tuning; what is left is here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_tuning.api.structural import INT_OR_STRING
from llm_tuning.openai_api.bases import Settings

ROOT = Path(__file__).resolve().parents[2]
FILE = Path("charts/llm-tuning-api/values.schema.json")
OPERATOR_SCHEMA = ROOT / "charts/llm-tuning/values.schema.json"
SHARED = (
    *("clusterAssignsUser", "resources", "podAnnotations", "podLabels", "nodeSelector", "tolerations", "affinity"),
    "priorityClassName",
)
"""Values that are those of charts/llm-tuning."""
KEPT = (
    *("type", "enum", "const", "pattern", "minLength", "maxLength", "minimum", "maximum", "required"),
    *("minItems", "maxItems", "minProperties", "maxProperties"),
)
"""Keywords of a field that are kept; descriptions are in the reference."""
Schema = dict[str, Any]


def render() -> str:
    """Return the file's text."""
    return json.dumps(build(), indent=1) + "\n"


def build() -> Schema:
    """Build the schema."""
    operator = json.loads(OPERATOR_SCHEMA.read_text(encoding="utf-8"))
    shared, settings = operator["properties"], _settings()
    name, labels = {"$ref": "#/definitions/name"}, {"$ref": "#/definitions/labels"}
    secret = {"type": "string", "maxLength": 253, "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
    pull_secrets = shared["images"]["properties"]["pullSecrets"]
    values = {
        "global": {"type": "object"},
        "image": _object(
            name=_or_empty({"$ref": "#/definitions/image"}),
            pullPolicy=shared["images"]["properties"]["pullPolicy"],
            pullSecrets=pull_secrets,
        ),
        "replicas": {"type": "integer", "minimum": 0, "maximum": 100},
        "claimName": _or_empty(settings["claimName"]),
        "organization": _or_empty(settings["organization"]),
        "bases": settings["bases"],
        "keys": _object(secrets={"type": "array", "maxItems": 16, "uniqueItems": True, "items": secret}),
        "limits": {
            **settings["limits"],
            "properties": {
                **settings["limits"]["properties"],
                "uploadsPerDay": _or_empty(settings["limits"]["properties"]["uploadsPerDay"]),
            },
        },
        "waitSeconds": settings["waitSeconds"],
        "deleteAdapters": settings["deleteAdapters"],
        "apiKeySecret": {"anyOf": [{"type": "object", "maxProperties": 0}, settings["apiKeySecret"]]},
        "networkPolicy": _object(
            enabled={"type": "boolean"},
            apiServerPorts=shared["networkPolicy"]["properties"]["apiServerPorts"],
            **{"from": shared["networkPolicy"]["properties"]["metricsFrom"]},
        ),
        "ingress": _object(
            enabled={"type": "boolean"},
            className=_or_empty(name),
            host=_or_empty({"type": "string", "pattern": "^(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}),
            annotations={"type": "object", "additionalProperties": {"type": "string"}},
            tlsSecret=_or_empty(name),
        ),
        "httpRoute": _object(
            enabled={"type": "boolean"},
            parentRefs={"type": "array", "items": {"type": "object", "required": ["name"]}},
            hostnames={"type": "array", "items": name},
        ),
        "monitor": _object(
            enabled={"type": "boolean"},
            labels=labels,
            interval=shared["metrics"]["properties"]["monitors"]["properties"]["interval"],
        ),
        **{key: shared[key] for key in SHARED},
    }
    return {"$schema": operator["$schema"], **_object(**values), "definitions": operator["definitions"]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _or_empty(schema: Schema) -> Schema:
    return {"anyOf": [{"const": ""}, schema]}


def _settings() -> dict[str, Schema]:
    """Return the schema of each field of Settings."""
    schema = Settings.model_json_schema(by_alias=True)
    properties: dict[str, Schema] = _written_out(schema, schema["$defs"])["properties"]
    bases = properties["bases"]
    bases["additionalProperties"]["oneOf"] = [{"required": ["path"]}, {"required": ["uri"]}]
    del bases["minProperties"]  # the template says what to set
    return properties


def _written_out(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Put references and the type beside null in their places, and refuse fields that a group does not know."""
    if "$ref" in node:
        return _written_out(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in node:
        [node] = [kind for kind in node["anyOf"] if kind.get("type") != "null"]
        return _written_out(node, definitions)
    result = {key: node[key] for key in KEPT if key in node}
    if node.get(INT_OR_STRING):
        del result["type"]
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            result[key] = _written_out(node[key], definitions)
    if "patternProperties" in node:
        [(pattern, values)] = node["patternProperties"].items()
        result["propertyNames"] = {**node.get("propertyNames", {}), "pattern": pattern}
        result["additionalProperties"] = _written_out(values, definitions)
    elif "propertyNames" in node:
        result["propertyNames"] = node["propertyNames"]
    if "properties" in node:
        result["additionalProperties"] = False
        result["properties"] = {name: _written_out(inner, definitions) for name, inner in node["properties"].items()}
    return result
