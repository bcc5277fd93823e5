"""TuningJob's models: pydantic's verdict on the corpus (the API server's is asked in tests/e2e/test_crd_corpus.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_tuning.api import TuningJob, TuningJobSpec
from llm_tuning.api.tuning_job import check_unchanged, read_status, tuning_config
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.errors import InputError
from tests.support import spec_corpus

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.mark.parametrize("case", spec_corpus.cases(), ids=lambda case: case.name)
def test_the_verdict_is_the_corpus_and_a_refusal_names_the_field(case: spec_corpus.Case) -> None:
    if case.good:
        TuningJobSpec.parse(case.spec, where="spec")
        return
    with pytest.raises(InputError) as refused:
        TuningJobSpec.parse(case.spec, where="spec")
    assert all(problem.where.startswith(f"spec.{case.field}") for problem in refused.value.problems), refused.value


@pytest.mark.parametrize("change", spec_corpus.changes(), ids=lambda change: change.name)
def test_only_suspend_and_ttl_change(change: spec_corpus.Change) -> None:
    applied = TuningJobSpec.parse(change.applied)
    for step, taken in change.steps:
        new = TuningJobSpec.parse(step)
        if taken:
            check_unchanged(applied, new)
            applied = new
        else:
            with pytest.raises(InputError) as refused:
                check_unchanged(applied, new)
            assert f"spec.{change.field}" in [problem.where for problem in refused.value.problems]


def test_the_corpus_is_large_and_has_both_kinds() -> None:
    cases = spec_corpus.cases()
    assert len(cases) >= 120
    assert sum(case.good for case in cases) >= 50


@pytest.mark.parametrize(
    ("metadata", "want"),
    [
        ({"name": "x" * 51}, "metadata.name: must have at most 50 characters, got 51"),
        ({"name": "A"}, "metadata.name: must be lower case"),
        ({"name": "a\n"}, "metadata.name: must be lower case"),
        ({"name": ""}, "metadata.name: must be lower case"),
        ({"name": 1}, "metadata.name: must be text, got 1; quote it"),
        ({"name": None}, "metadata.name: is required"),
        ({}, "metadata.name: is required"),
    ],
)
def test_a_bad_name_is_refused(metadata: dict[str, Any], want: str) -> None:
    with pytest.raises(InputError, match=want):
        TuningJob.parse({"metadata": metadata, "spec": spec_corpus.MINIMAL})


def test_the_server_may_make_the_name() -> None:
    TuningJob.parse({"metadata": {"generateName": "faq-"}, "spec": spec_corpus.MINIMAL})


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


def test_a_spec_survives_being_written_and_read() -> None:
    spec = TuningJobSpec.parse(spec_corpus.FULL)
    assert TuningJobSpec.parse(spec.model_dump(by_alias=True)) == spec


def test_paths_of_a_run_lie_below_the_claim() -> None:
    spec = TuningJobSpec.parse(spec_corpus.FULL)
    config = tuning_config(spec, root=Path("/workspace"), start_model_id="ft_sft_tiny_1_abcdef")
    assert config.model.path == "/workspace/base/tiny"
    assert config.dataset.path == "/workspace/datasets/faq.json"
    assert config.model.adapter is not None
    assert config.model.adapter.model_id == "ft_sft_tiny_1_abcdef"
    assert (config.mode, config.training, config.lora) == (spec.mode, spec.training, spec.lora)


def test_a_data_set_of_a_config_map_is_the_mounted_file() -> None:
    spec = TuningJobSpec.parse({**spec_corpus.MINIMAL, "dataset": {"configMap": {"name": "faq", "key": "faq.json"}}})
    config = tuning_config(spec, root=Path("/workspace"), dataset_file=Path("/dataset/faq.json"))
    assert config.dataset.path == "/dataset/faq.json"
    with pytest.raises(ValueError, match="dataset_file"):
        tuning_config(spec, root=Path("/workspace"))
