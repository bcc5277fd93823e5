"""YAML that the pages show is what the API and the command line take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning.api import TuningConfig, TuningJob
from llm_tuning.api.inference_service import InferenceService
from llm_tuning.api.yaml import load_yaml_mapping
from tests.support.pages import PAGES, ROOT, shown_name, yaml_documents

OURS: dict[str, type[TuningJob | InferenceService]] = {"TuningJob": TuningJob, "InferenceService": InferenceService}
OTHERS = {"Secret", "Role", "ClusterRole", "ResourceQuota"}
HELM_VALUES = yaml.safe_load((ROOT / "charts/llm-tuning/values.yaml").read_text())
DOCUMENTS = [
    pytest.param(page, text, id=f"{shown_name(page)}: {text.splitlines()[0]}")
    for page in PAGES
    for text in yaml_documents(page)
]


def completed(given: dict[str, Any]) -> dict[str, Any]:
    """A part of a TuningJob's spec as a whole object."""
    spec: dict[str, Any] = {"model": {"path": "base/b"}, "dataset": {"path": "d.json"}, "volume": {"claimName": "c"}}
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {"name": "part"},
        "spec": spec | given["spec"],
    }


@pytest.mark.parametrize(("page", "document"), DOCUMENTS)
def test_every_yaml_block_is_taken(page: Path, document: str, tmp_path: Path) -> None:
    (tmp_path / "block.yaml").write_text(document)
    values = load_yaml_mapping(tmp_path / "block.yaml")
    if values.get("kind") in OTHERS:
        assert values["metadata"]["name"]
    elif "kind" in values:
        OURS[values["kind"]].parse(values)
    elif set(values) <= set(HELM_VALUES):
        assert page.name == "install.md", "tests/command/charts/test_docs.py gives the values of that page to the chart"
    elif "spec" in values:
        TuningJob.parse(completed(values))
    else:
        TuningConfig.parse(values)


def test_there_are_whole_ones_parts_and_configurations() -> None:
    texts = [text for page in PAGES for text in yaml_documents(page)]
    kinds = [(yaml.safe_load(text) or {}).get("kind") for text in texts]
    assert kinds.count("TuningJob") >= 5
    assert kinds.count("InferenceService") >= 2
    assert sum(text.startswith("spec:") for text in texts) >= 2
    assert sum(text.startswith("mode:") for text in texts) >= 1


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=shown_name)
def test_every_example_is_taken(file: Path) -> None:
    values = load_yaml_mapping(file)
    OURS[values["kind"]].parse(values)


def test_the_demos_objects_are_taken_and_name_its_hub(tmp_path: Path) -> None:
    ours = []
    for file in sorted((ROOT / "examples/demo/cluster").glob("*.yaml")):
        for document in file.read_text().split("\n---\n"):
            (tmp_path / "one.yaml").write_text(document)
            values = load_yaml_mapping(tmp_path / "one.yaml")
            if values["kind"] in OURS:
                ours.append(OURS[values["kind"]].parse(values))
    assert [each.spec.model.uri for each in ours] == ["hf://demo/tiny-python"] * 4
