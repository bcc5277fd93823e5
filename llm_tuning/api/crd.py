"""The CustomResourceDefinition of TuningJob, generated from its models: `python -m llm_tuning.api.crd [--check]`.

What the models cannot say by themselves is added here: which fields stay as they were applied (rules that compare with
the old object, presence included, since a rule on an optional field itself is skipped when the field comes or goes),
the length of the name, and the columns of `kubectl get`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from llm_tuning.api import tuning_job as api
from llm_tuning.api.structural import INT_OR_STRING, RULES, Schema, rule, structural_schema

FILE_NAME = f"{api.PLURAL}.{api.GROUP}.yaml"
FOLDERS = (Path("crds"), Path("charts/llm-tuning/files/crds"))
"""Below the repository's root: for `kubectl apply`, and the copy that the chart carries."""

HEADER = "# Generated from llm_tuning/api/tuning_job.py by `python -m llm_tuning.api.crd`. Do not edit.\n"
MUTABLE = tuple(to_camel(name) for name in api.MUTABLE)

COLUMNS = [
    ("Mode", "string", ".spec.mode", "How it learns"),
    ("Phase", "string", ".status.phase", "Where it is"),
    ("Progress", "integer", ".status.progress.percent", "Percent of the steps"),
    ("Loss", "number", ".status.progress.loss", "Training loss of the last report"),
    ("ETA", "integer", ".status.progress.remainingSeconds", "Estimated seconds to the end of the training"),
    ("Model", "string", ".status.modelId", "Name of the adapter"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was created"),
]
WIDE_ONLY = ("Model",)


def build_crd() -> dict[str, Any]:
    """The whole object as it is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{api.PLURAL}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": api.KIND,
                "listKind": f"{api.KIND}List",
                "plural": api.PLURAL,
                "singular": api.SINGULAR,
                "shortNames": [api.SHORT_NAME],
                "categories": [api.CATEGORY],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
                    "schema": {"openAPIV3Schema": build_schema()},
                }
            ],
        },
    }


def build_schema() -> Schema:
    """The schema of the whole object."""
    spec = explained(frozen(structural_schema(api.TuningJobSpec), mutable=MUTABLE))
    for name, field in spec["properties"].items():
        if name not in MUTABLE:
            field["description"] += " Immutable."
    return {
        "description": "A tuning run: check the data, train a LoRA adapter, evaluate and register it.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{api.API_VERSION}."},
            "kind": {"type": "string", "description": f"{api.KIND}."},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural_schema(api.TuningJobStatus),
        },
        RULES: [
            rule(
                f"self.metadata.name.size() <= {api.NAME_CHARACTERS}",
                f"metadata.name must have at most {api.NAME_CHARACTERS} characters: Jobs and pods append to it",
            )
        ],
    }


def frozen(schema: Schema, *, mutable: tuple[str, ...] = ()) -> Schema:
    """`schema` with rules that keep every field but `mutable`; a group that is always there has rules of its own."""
    properties, rules = {}, list(schema.get(RULES, []))
    for name, field in schema["properties"].items():
        properties[name] = field
        if name in mutable:
            continue
        if "properties" in field and (name in schema.get("required", []) or "default" in field):
            properties[name] = frozen(field)
        else:
            rules.append(_kept(name, field))
    return {**schema, "properties": properties, RULES: rules} if rules else {**schema, "properties": properties}


def explained(schema: Schema) -> Schema:
    """`schema` with defaults and bounds in words, since `kubectl explain` shows descriptions only."""
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
    """Presence is asked of defaulted fields too: a group's default {} meets the rules before its inner defaults.

    What may be a number or text is compared as text: `cpu: 4` and `cpu: "4"` are one value.
    """
    new, old = f"self.{name}", f"oldSelf.{name}"
    equal = f"string({new}) == string({old})" if INT_OR_STRING in field else f"{new} == {old}"
    same = f"has({new}) == has({old}) && (!has({new}) || {equal})"
    return rule(same, api.IMMUTABLE, field=f".{name}")


def _column(name: str, kind: str, path: str, description: str) -> dict[str, Any]:
    priority = {"priority": 1} if name in WIDE_ONLY else {}
    return {"name": name, "type": kind, "jsonPath": path, "description": description, **priority}


def render() -> str:
    """The file's text."""
    return HEADER + yaml.safe_dump(build_crd(), sort_keys=False, width=120, allow_unicode=True)


def main(arguments: list[str] | None = None) -> int:
    """Write the files, or with --check tell which of them differ."""
    parser = argparse.ArgumentParser(prog="python -m llm_tuning.api.crd", description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not what it would be")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository's root (default: this folder)")
    options = parser.parse_args(arguments)
    text, differing = render(), []
    for folder in FOLDERS:
        path = options.root / folder / FILE_NAME
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
