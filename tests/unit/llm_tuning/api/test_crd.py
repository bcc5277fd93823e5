"""The generated CRD: no drift, and what every field has to have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning.api import crd

ROOT = Path(__file__).resolve().parents[4]


def fields(schema: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield at, schema
    for name, inner in schema.get("properties", {}).items():
        yield from fields(inner, f"{at}.{name}")
    if "items" in schema:
        yield from fields(schema["items"], f"{at}[]")
    if "additionalProperties" in schema:
        yield from fields(schema["additionalProperties"], f"{at}{{}}")


FIELDS = [
    pytest.param(path, field, id=f"{kind.name}{path}")
    for kind in crd.KINDS
    for path, field in fields(crd.build_schema(kind))
    if path.startswith((".spec", ".status")) or path == ""
]


def test_the_files_are_what_the_models_give() -> None:
    assert crd.main(["--check", "--root", str(ROOT)]) == 0, "run: python -m llm_tuning.api.crd"


def test_a_file_that_differs_is_told_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--root", str(tmp_path)]) == 0
    path = tmp_path / crd.FOLDERS[1] / crd.INFERENCE_SERVICE.file_name
    path.write_text(path.read_text().replace("maximum: 1000", "maximum: 1001"))
    capsys.readouterr()
    assert crd.main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{path}: differs from the models; run this without --check\n"
    assert crd.main(["--root", str(tmp_path)]) == 0
    for kind in crd.KINDS:
        for folder in crd.FOLDERS:
            assert yaml.safe_load((tmp_path / folder / kind.file_name).read_text()) == crd.build_crd(kind)


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_a_field_is_described_and_bounded(path: str, field: dict[str, Any]) -> None:
    assert field.get("description") or path.endswith(("{}", "[]")), "kubectl explain would show nothing"
    match field.get("type"):
        case "string":
            assert "maxLength" in field or "enum" in field
        case "array":
            assert "maxItems" in field
        case "object":
            assert "properties" in field or "maxProperties" in field
        case "integer" | "number" if path.startswith(".spec"):
            assert "enum" in field or {"minimum", "maximum"} <= set(field)


def test_defaults_and_bounds_stand_in_the_description() -> None:
    spec = crd.build_schema()["properties"]["spec"]["properties"]
    assert (
        spec["lora"]["properties"]["rank"]["description"] == "Rank of the update matrices. Default 16, from 1 to 512."
    )
    assert spec["dataset"]["properties"]["skipInvalidRows"]["description"].endswith(" Default false.")
    assert spec["retries"]["description"].endswith(" Default 3, from 0 to 100. Immutable.")
    served = crd.build_schema(crd.INFERENCE_SERVICE)["properties"]["spec"]["properties"]
    weight = served["routes"]["items"]["properties"]["targets"]["items"]["properties"]["weight"]
    assert weight["description"].endswith(" Default 1, from 0 to 1000.")
    assert served["replicas"]["description"].endswith(" Default 1, from 0 to 64.")


def test_every_field_of_the_spec_but_two_stays_as_it_was_applied() -> None:
    spec = crd.build_schema()["properties"]["spec"]
    guarded = {
        f"{path}{rule['fieldPath']}"
        for path, field in fields(spec)
        for rule in field.get("x-kubernetes-validations", [])
        if "oldSelf" in rule["rule"]
    }
    free = [
        path
        for path, field in fields(spec)
        if path
        and "properties" not in field
        and not any(path == one or path.startswith((f"{one}.", f"{one}[", f"{one}{{")) for one in guarded)
    ]
    assert free == [".suspend", ".ttlSecondsAfterFinished"]


def test_nothing_of_an_inference_service_stays_as_it_was_applied() -> None:
    assert "oldSelf" not in crd.render(crd.INFERENCE_SERVICE)
    assert "Immutable" not in crd.render(crd.INFERENCE_SERVICE)


def test_an_inference_service_is_scaled_by_its_replicas() -> None:
    (version,) = crd.build_crd(crd.INFERENCE_SERVICE)["spec"]["versions"]
    for path in version["subresources"]["scale"].values():
        at = version["schema"]["openAPIV3Schema"]
        for name in path.lstrip(".").split("."):
            at = at["properties"][name]
        assert at["type"] in ("integer", "string")


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.name)
def test_a_path_is_refused_in_words(kind: crd.Kind) -> None:
    """The API server shows a pattern as it is written; nobody reads 130 characters of it."""
    schemas = dict(fields(crd.build_schema(kind)))
    path = schemas[".spec.model.path"]
    assert "pattern" not in path
    assert "must be a path on the claim, such as base/model" in path["x-kubernetes-validations"][0]["message"]
    assert max(len(schema.get("pattern", "")) for schema in schemas.values()) < 125
