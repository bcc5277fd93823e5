"""What docs/tuningjob.md shows is what the API takes, and every reason it may give is explained there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import TuningJob
from llm_tuning.api.conditions import ConditionType, Phase, Reason
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.pod.contract import PodReason

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tuningjob.md"
TEXT = PAGE.read_text(encoding="utf-8")
DOCUMENTS = [
    document
    for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)
    for document in re.split(r"^---\n", block, flags=re.MULTILINE)
]
KINDS_SHOWN = ("TuningJob", "Secret")

SAY_NOTHING_TO_DO = {
    # Of conditions that are as they should be: the table of conditions has them by their status.
    *(Reason.PENDING, Reason.CHECKED, Reason.DATASET_VALID, Reason.WAITING_FOR_CHECK, Reason.TRAINED),
    *(Reason.REGISTERED, Reason.EVALUATED, Reason.SUCCEEDED, Reason.RUNNING, Reason.NOT_SUSPENDED),
    *(Reason.NOT_STALLED, Reason.FINISHED, Reason.NOT_REACHED, PodReason.DATASET_VALID, PodReason.TRAINED),
}


def completed(given: dict[str, Any]) -> dict[str, Any]:
    """A part of a spec as a whole TuningJob."""
    spec: dict[str, Any] = {"model": {"path": "base/b"}, "dataset": {"path": "d.json"}, "volume": {"claimName": "c"}}
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {"name": "part"},
        "spec": spec | given["spec"],
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda text: text.split("\n")[0])
def test_every_yaml_block_is_taken(document: str, tmp_path: Path) -> None:
    (tmp_path / "block.yaml").write_text(document)
    values = load_yaml_mapping(tmp_path / "block.yaml")
    if "kind" in values:
        assert values["kind"] in KINDS_SHOWN
        assert values["metadata"]["name"]
    if values.get("kind", "TuningJob") == "TuningJob":
        TuningJob.parse(values if "kind" in values else completed(values))


def test_there_are_whole_ones_and_parts() -> None:
    assert sum("kind: TuningJob" in document for document in DOCUMENTS) >= 3
    assert sum(document.startswith("spec:") for document in DOCUMENTS) >= 2


def test_every_reason_to_act_is_explained_and_no_other_is() -> None:
    reasons = {str(reason) for reason in (*Reason, *PodReason)}
    named = set(re.findall(r"`([A-Z]\w+)`", TEXT))
    assert {str(reason) for reason in reasons - {str(r) for r in SAY_NOTHING_TO_DO}} <= named
    assert {word for word in named if not word.isupper()} <= reasons


def test_every_phase_and_condition_has_its_line() -> None:
    lines = re.findall(r"^\| ([A-Z]\w+(?:, [A-Z]\w+)*) \|", TEXT, flags=re.MULTILINE)
    named = {word for line in lines for word in line.split(", ")}
    assert {str(word) for word in (*Phase, *ConditionType)} <= named
