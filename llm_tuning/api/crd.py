"""The CustomResourceDefinitions, generated from the models: `python -m llm_tuning.api.crd [--check]`.

What the models cannot say by themselves is added here: which fields stay as they were applied (rules that compare with
the old object, presence included, since a rule on an optional field itself is skipped when the field comes or goes),
the length of the name, and the columns of `kubectl get`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from llm_tuning.api import inference_service, kube, tuning_job
from llm_tuning.api.structural import INT_OR_STRING, RULES, Schema, rule, structural_schema
from llm_tuning.core.model import ApiModel

FOLDERS = (Path("crds"), Path("charts/llm-tuning/files/crds"))
"""Below the repository's root: for `kubectl apply`, and the copy that the chart carries."""

HEADER = "# Generated from {module}.py by `python -m llm_tuning.api.crd`. Do not edit.\n"
Column = tuple[str, str, str, str]
"""Title, type, JSONPath and description of a column of `kubectl get`."""


@dataclass(frozen=True)
class Kind:
    """A custom resource."""

    name: str
    plural: str
    singular: str
    short_name: str
    description: str
    module: str
    spec: type[ApiModel]
    status: type[ApiModel]
    columns: list[Column]
    wide_only: tuple[str, ...] = ()
    mutable: tuple[str, ...] | None = None
    """Fields of the spec that may change; None: all."""
    rules: list[Any] = field(default_factory=list)
    """About the whole object."""
    subresources: dict[str, Any] = field(default_factory=dict)
    """Beside `status`."""

    @property
    def file_name(self) -> str:
        return f"{self.plural}.{kube.GROUP}.yaml"


TUNING_JOB = Kind(
    tuning_job.KIND,
    tuning_job.PLURAL,
    tuning_job.SINGULAR,
    tuning_job.SHORT_NAME,
    description="A tuning run: check the data, train a LoRA adapter, evaluate and register it.",
    module="llm_tuning/api/tuning_job",
    spec=tuning_job.TuningJobSpec,
    status=tuning_job.TuningJobStatus,
    columns=[
        ("Mode", "string", ".spec.mode", "How it learns"),
        ("Phase", "string", ".status.phase", "Where it is"),
        ("Progress", "integer", ".status.progress.percent", "Percent of the bytes, then of the steps"),
        ("Loss", "number", ".status.progress.loss", "Training loss of the last report"),
        (
            "ETA",
            "integer",
            ".status.progress.remainingSeconds",
            "Estimated seconds to the end of the fetch, or of the training",
        ),
        (
            "Stalled",
            "string",
            ".status.conditions[?(@.type=='Stalled')].reason",
            "Why it makes no progress, where it is stalled",
        ),
        ("Model", "string", ".status.modelId", "Name of the adapter"),
        ("Bytes/s", "number", ".status.progress.bytesPerSecond", "Speed of the fetch"),
        ("Age", "date", ".metadata.creationTimestamp", "Time since it was created"),
    ],
    wide_only=("Model", "Bytes/s"),
    mutable=tuple(to_camel(name) for name in tuning_job.MUTABLE),
    rules=[
        rule(
            f"self.metadata.name.size() <= {tuning_job.NAME_CHARACTERS}",
            f"metadata.name must have at most {tuning_job.NAME_CHARACTERS} characters: Jobs and pods append to it",
        ),
        rule(
            f"self.spec.resources.nodes == 1 || self.metadata.name.matches(r'{inference_service.SERVICE_NAME}')",
            f"metadata.name {tuning_job.NODES_NAME_RULE}: {tuning_job.NODES_NAME_REASON}",
        ),
    ],
)
INFERENCE_SERVICE = Kind(
    inference_service.KIND,
    inference_service.PLURAL,
    inference_service.SINGULAR,
    inference_service.SHORT_NAME,
    description="A base model with adapters of finished TuningJobs, served by vLLM and proven on every replica.",
    module="llm_tuning/api/inference_service",
    spec=inference_service.InferenceServiceSpec,
    status=inference_service.InferenceServiceStatus,
    columns=[
        ("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", "Whether every route answers as trained"),
        ("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", "Why it is so"),
        ("Replicas", "integer", ".status.readyReplicas", "Pods that answer"),
        ("URL", "string", ".status.url", "Where the cluster reaches it"),
        ("Fetched", "integer", ".status.progress.percent", "Percent of the bytes of a base that is being fetched"),
        ("ETA", "integer", ".status.progress.remainingSeconds", "Estimated seconds to the end of the fetch"),
        ("Bytes/s", "number", ".status.progress.bytesPerSecond", "Speed of the fetch"),
        ("Age", "date", ".metadata.creationTimestamp", "Time since it was created"),
    ],
    wide_only=("Fetched", "ETA", "Bytes/s"),
    rules=[
        rule(
            f"self.metadata.name.size() <= {inference_service.NAME_CHARACTERS}",
            f"metadata.name must have at most {inference_service.NAME_CHARACTERS} characters: pods append to it",
        ),
        rule(
            f"self.metadata.name.matches(r'{inference_service.SERVICE_NAME}')",
            "metadata.name must be lower case letters, digits and -, with a letter first: the Service has the same",
        ),
    ],
    subresources={
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    },
)
KINDS = (TUNING_JOB, INFERENCE_SERVICE)


def build_crd(kind: Kind = TUNING_JOB) -> dict[str, Any]:
    """Build the whole CustomResourceDefinition as it is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kube.GROUP}"},
        "spec": {
            "group": kube.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short_name],
                "categories": [kube.CATEGORY],
            },
            "versions": [
                {
                    "name": kube.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}, **kind.subresources},
                    "additionalPrinterColumns": [_column(kind, *column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": build_schema(kind)},
                }
            ],
        },
    }


def build_schema(kind: Kind = TUNING_JOB) -> Schema:
    """Build the schema of the whole object."""
    spec = structural_schema(kind.spec)
    if kind.mutable is not None:
        spec = frozen(spec, mutable=kind.mutable)
    spec = explained(spec)
    for name, schema in spec["properties"].items():
        if kind.mutable is not None and name not in kind.mutable:
            schema["description"] += " Immutable."
    return {
        "description": kind.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{kube.API_VERSION}."},
            "kind": {"type": "string", "description": f"{kind.name}."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural_schema(kind.status),
        },
        RULES: kind.rules,
    }


def frozen(schema: Schema, *, mutable: tuple[str, ...] = ()) -> Schema:
    """Add rules to `schema` that keep every field but `mutable`; a group that is always there has rules of its own."""
    properties, rules = {}, list(schema.get(RULES, []))
    for name, inner in schema["properties"].items():
        properties[name] = inner
        if name in mutable:
            continue
        if "properties" in inner and (name in schema.get("required", []) or "default" in inner):
            properties[name] = frozen(inner)
        else:
            rules.append(_kept(name, inner))
    return {**schema, "properties": properties, RULES: rules} if rules else {**schema, "properties": properties}


def explained(schema: Schema) -> Schema:
    """Add defaults and bounds in words to `schema`, since `kubectl explain` shows descriptions only."""
    result = dict(schema)
    words = []
    if not isinstance(schema.get("default", {}), dict):
        words.append(f"default {_in_yaml(schema['default'])}")
    if "minimum" in schema and "maximum" in schema and "type" in schema:  # a number or text says it itself
        words.append(f"from {_in_yaml(schema['minimum'])} to {_in_yaml(schema['maximum'])}")
    if words and "description" in schema:
        result["description"] = f"{schema['description']} {_sentence(words)}."
    if "properties" in schema:
        result["properties"] = {name: explained(field) for name, field in schema["properties"].items()}
    if "items" in schema:
        result["items"] = explained(schema["items"])
    return result


def _in_yaml(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(parts: list[str]) -> str:
    text = ", ".join(parts)
    return text[:1].upper() + text[1:]


def _kept(name: str, field: Schema) -> Any:
    return rule(_same(f"self.{name}", f"oldSelf.{name}", field), tuning_job.IMMUTABLE, field=f".{name}")


def _same(new: str, old: str, field: Schema) -> str:
    """Build the CEL that a field is unchanged; it asks for presence, as an outer default {} comes before inner ones."""
    return f"has({new}) == has({old}) && (!has({new}) || {_equal(new, old, field)})"


def _equal(new: str, old: str, field: Schema) -> str:
    """Compare what may be a number or text as text, also inside a group: `cpu: 4` and `cpu: "4"` are one value."""
    if INT_OR_STRING in field:
        return f"string({new}) == string({old})"
    if not _has_int_or_string(field):
        return f"{new} == {old}"
    return " && ".join(_same(f"{new}.{name}", f"{old}.{name}", inner) for name, inner in field["properties"].items())


def _has_int_or_string(field: Schema) -> bool:
    return INT_OR_STRING in field or any(map(_has_int_or_string, field.get("properties", {}).values()))


def _column(kind: Kind, name: str, type_: str, path: str, description: str) -> dict[str, Any]:
    priority = {"priority": 1} if name in kind.wide_only else {}
    return {"name": name, "type": type_, "jsonPath": path, "description": description, **priority}


def render(kind: Kind) -> str:
    """Return the text of the kind's file."""
    body = yaml.safe_dump(build_crd(kind), sort_keys=False, width=120, allow_unicode=True)
    return HEADER.format(module=kind.module) + body


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with --check list those that differ."""
    parser = argparse.ArgumentParser(prog="python -m llm_tuning.api.crd", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not what it would be")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root (default: this folder)")
    options = parser.parse_args(arguments)
    differing = []
    for kind, folder in ((kind, folder) for kind in KINDS for folder in FOLDERS):
        text, path = render(kind), options.root / folder / kind.file_name
        if not path.exists() or path.read_text() != text:
            differing.append(path)
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    for path in differing:
        sys.stdout.write(
            f"{path}: {'differs from the models; run this without --check' if options.check else 'written'}\n"
        )
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
