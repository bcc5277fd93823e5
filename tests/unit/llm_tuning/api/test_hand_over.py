"""Every field of a TuningJob's spec that a run has arrives in the run: none is a setting that silently does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api.tuning import TuningConfig
from llm_tuning.api.tuning_job import TuningJobSpec, tuning_config
from llm_tuning.core.model import ApiModel
from llm_tuning.modes import MODES

ROOT = Path("/claim")
TEXTS = {"target_modules": "q_proj,v_proj", "uri": "http://mlflow:5000", "experiment_name": "another"}
PLACES = {
    ("model", "path"): ("base/other", "/claim/base/other"),
    ("dataset", "path"): ("datasets/other.json", "/claim/datasets/other.json"),
    ("dataset", "evaluation"): ("datasets/eval.json", "/claim/datasets/eval.json"),
    ("model", "adapter", "model_id"): ("start", "start"),
}
"""Fields whose value is another in the run: what the job has, and what the run is to have."""


def leaves(model: type[ApiModel], at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The path and JSON schema of every field below `model` that is no group."""
    schema = model.model_json_schema(by_alias=False)
    for name, node in schema["properties"].items():
        yield from _below(node, schema.get("$defs", {}), (*at, name))


def _below(
    node: dict[str, Any], definitions: dict[str, Any], at: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    for kind in node.get("anyOf", ()):
        if kind.get("type") != "null":
            node = {**node, **kind}
    if "$ref" in node:
        node = definitions[node["$ref"].removeprefix("#/$defs/")]
    if "properties" not in node:
        yield at, node
    for name, inner in node.get("properties", {}).items():
        yield from _below(inner, definitions, (*at, name))


def another(path: tuple[str, ...], node: dict[str, Any]) -> Any:
    """A value that is allowed and not the default."""
    default = node.get("default")
    if path in PLACES:
        return PLACES[path][0]
    if node.get("type") == "object":
        return {"prompt": "question"}
    if "enum" in node:
        return next(choice for choice in node["enum"] if choice != default)
    if node["type"] == "boolean":
        return not default
    if node["type"] in ("integer", "number"):
        convert = int if node["type"] == "integer" else float
        return next(convert(node[bound]) for bound in ("maximum", "minimum") if node[bound] != default)
    return TEXTS[path[-1]]


LEAVES = dict(leaves(TuningConfig))


def spec_with(path: tuple[str, ...], value: Any) -> TuningJobSpec:
    raw: dict[str, Any] = {"model": {"path": "base"}, "dataset": {"path": "rows"}, "volume": {"claim_name": "tuning"}}
    if path[0] in MODES:
        raw["mode"] = path[0]
    *groups, name = path
    group = raw
    for each in groups:
        group = group.setdefault(each, {})
    group[name] = value
    return TuningJobSpec.model_validate(raw)


def test_the_walk_finds_the_fields() -> None:
    assert len(LEAVES) > 30
    assert {path[0] for path in LEAVES} == set(TuningConfig.model_fields)


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_a_field_of_the_job_is_a_field_of_the_run(path: tuple[str, ...]) -> None:
    value = another(path, LEAVES[path])
    spec = spec_with(path, value)
    start = value if path == ("model", "adapter", "model_id") else None
    arrived: Any = tuning_config(spec, root=ROOT, start_model_id=start)
    plain: Any = tuning_config(spec_with(("mode",), spec.mode), root=ROOT)
    assert arrived != plain or path == ("mode",)
    for name in path:
        arrived = getattr(arrived, name)
    assert arrived == PLACES.get(path, (None, value))[1]


def test_a_split_alone_is_of_the_data_set_wherever_that_is() -> None:
    spec = spec_with(("dataset", "evaluation"), "#validation")
    assert tuning_config(spec, root=ROOT).dataset.evaluation == "#validation"


@pytest.mark.parametrize("group", ["training", "lora"])
def test_what_was_set_is_still_known_to_be_set(group: str) -> None:
    """A start adapter's own rank may stand where none was asked for."""
    spec = spec_with((group, {"training": "epochs", "lora": "rank"}[group]), 3)
    assert getattr(tuning_config(spec, root=ROOT), group).model_fields_set == getattr(spec, group).model_fields_set
