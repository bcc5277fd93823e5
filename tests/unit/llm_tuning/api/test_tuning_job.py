"""TuningJob's models beyond their verdict (test_spec_corpus): examples, statuses, and the run's configuration."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_tuning.api import TuningJob, TuningJobSpec
from llm_tuning.api.inference_service import InferenceService
from llm_tuning.api.tuning import MODEL_ID_PATTERN
from llm_tuning.api.tuning_job import read_status, tuning_config
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.core.model import PATTERN_WORDS
from llm_tuning.errors import InputError
from tests.support.spec_corpus import TUNING_JOB

EXAMPLES = Path(__file__).resolve().parents[4] / "examples"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("tuningjob*.yaml")), ids=lambda path: path.name)
def test_an_example_is_valid(example: Path) -> None:
    job = TuningJob.parse(load_yaml_mapping(example))
    assert job.spec.training.learning_rate in (None, 2e-4, 5e-5)


def test_a_status_of_another_version_is_read() -> None:
    status = read_status(
        {
            "phase": "Training",
            "sparkle": 1,
            "progress": {"percent": 10, "sparkle": 1},
            "conditions": [{"type": "Trained", "status": "Unknown", "reason": "Training", "sparkle": 1}],
        }
    )
    assert (status.phase, status.progress and status.progress.percent) == ("Training", 10)
    assert status.conditions[0].type == "Trained"
    assert read_status(None).conditions == []


def test_paths_of_a_run_lie_below_the_claim() -> None:
    spec = TuningJobSpec.parse(TUNING_JOB.full)
    config = tuning_config(spec, root=Path("/workspace"), start_model_id="ft_sft_tiny_1_abcdef")
    assert config.model.path == "/workspace/base/tiny"
    assert config.dataset.path == "/workspace/datasets/faq.json"
    assert config.model.adapter is not None
    assert config.model.adapter.model_id == "ft_sft_tiny_1_abcdef"
    assert (config.mode, config.training, config.lora) == (spec.mode, spec.training, spec.lora)


def test_a_data_set_of_a_config_map_is_the_mounted_file() -> None:
    spec = TuningJobSpec.parse({**TUNING_JOB.minimal, "dataset": {"configMap": {"name": "faq", "key": "faq.json"}}})
    config = tuning_config(spec, root=Path("/workspace"), dataset_file=Path("/dataset/faq.json"))
    assert config.dataset.path == "/dataset/faq.json"
    with pytest.raises(ValueError, match="dataset_file"):
        tuning_config(spec, root=Path("/workspace"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model": {"path": "/base"}},
            "spec.model.path: must be a path on the claim, such as base/model, that neither begins with / nor has . or "
            ".. in it, got '/base'",
        ),
        ({"resources": {"memory": "8"}}, "spec.resources.memory: must be a number with its unit, such as 8Gi, got '8'"),
        (
            {"tracking": {"credentialsSecret": {"name": "mlflow"}}},
            "spec.tracking.credentialsSecret.name: must be a name that begins with llm-tuning-, since no other Secret",
        ),
    ],
)
def test_a_text_of_another_form_is_told_in_words(change: dict[str, object], said: str) -> None:
    values = load_yaml_mapping(EXAMPLES / "tuningjob.yaml")
    values["spec"] |= change
    with pytest.raises(InputError, match=re.escape(said)):
        TuningJob.parse(values)


@pytest.mark.parametrize("field", ["name", "generateName"])
@pytest.mark.parametrize(("name", "good"), [("faq.v1", False), ("7b-faq", False), ("faq-7b", True)])
def test_several_nodes_want_a_name_that_a_service_can_have(field: str, name: str, *, good: bool) -> None:
    values = load_yaml_mapping(EXAMPLES / "tuningjob.yaml")
    values["metadata"] = {field: name}
    TuningJob.parse(values)
    values["spec"]["resources"] = {"nodes": 2}
    if good:
        TuningJob.parse(values)
        return
    with pytest.raises(
        InputError, match=rf"^metadata\.{field}: must be .* spec\.resources\.nodes is above 1, got {name}"
    ):
        TuningJob.parse(values)


@pytest.mark.parametrize("model", [TuningJob, InferenceService])
def test_every_pattern_of_a_name_has_its_words(model: type[TuningJob | InferenceService]) -> None:
    without = {found for found in _patterns(model.model_json_schema()) if found not in PATTERN_WORDS}
    assert without <= {
        r"^[^\x00]+$",
        r"^[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*$",
        r"^[-._a-zA-Z0-9]*[-_a-zA-Z0-9]$",
        MODEL_ID_PATTERN,
    }


def _patterns(schema: object) -> set[str]:
    if isinstance(schema, dict):
        own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
        return own.union(*map(_patterns, schema.values()))
    return set().union(*map(_patterns, schema)) if isinstance(schema, list) else set()
