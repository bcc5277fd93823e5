"""pydantic's verdict on the corpus of each kind (the API server's is asked in tests/cluster/test_crd_corpus.py)."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api import TuningJobSpec
from llm_tuning.api.tuning_job import check_unchanged
from llm_tuning.errors import InputError
from tests.support.spec_corpus import CORPORA, Case, Change, Corpus

KINDS = pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.kind.name)
CASES = [
    pytest.param(corpus, case, id=f"{corpus.kind.name}: {case.name}") for corpus in CORPORA for case in corpus.cases()
]
CHANGES = [
    pytest.param(corpus, change, id=f"{corpus.kind.name}: {change.name}")
    for corpus in CORPORA
    for change in corpus.changes()
]
NAMES = [
    pytest.param(corpus, name, spec, good, id=f"{corpus.kind.name}: {name}")
    for corpus in CORPORA
    for name, spec, good in corpus.named()
]


@pytest.mark.parametrize(("corpus", "case"), CASES)
def test_the_verdict_is_the_corpus_and_a_refusal_names_the_field(corpus: Corpus, case: Case) -> None:
    if case.good:
        corpus.kind.spec.parse(case.spec, where="spec")
        return
    with pytest.raises(InputError) as refused:
        corpus.kind.spec.parse(case.spec, where="spec")
    assert all(problem.where.startswith(f"spec.{case.field}") for problem in refused.value.problems), refused.value


@pytest.mark.parametrize(("corpus", "change"), CHANGES)
def test_a_change_is_taken_or_names_the_field(corpus: Corpus, change: Change) -> None:
    applied = corpus.kind.spec.parse(change.applied)
    for step, taken in change.steps:
        if taken:
            applied = changed(corpus, applied, step)
        else:
            with pytest.raises(InputError) as refused:
                changed(corpus, applied, step)
            assert f"spec.{change.field}" in [problem.where for problem in refused.value.problems]


def changed(corpus: Corpus, applied: Any, step: dict[str, Any]) -> Any:
    """The spec after it; raises InputError where it is refused."""
    new = corpus.kind.spec.parse(step, where="spec")
    if isinstance(new, TuningJobSpec):
        check_unchanged(applied, new)
    return new


@pytest.mark.parametrize(("corpus", "name", "spec", "good"), NAMES)
def test_a_name_is_taken_or_refused(corpus: Corpus, name: str, spec: dict[str, Any], good: bool) -> None:
    values = {"metadata": {"name": name}, "spec": spec}
    if good:
        corpus.model.parse(values)
        return
    with pytest.raises(InputError, match=r"metadata\.name: must"):
        corpus.model.parse(values)


@KINDS
@pytest.mark.parametrize(
    ("metadata", "want"),
    [
        ({"name": "a\n"}, "metadata.name: must be lower case"),
        ({"name": ""}, "metadata.name: must be lower case"),
        ({"name": 1}, "metadata.name: must be text, got 1; quote it"),
        ({"name": None}, "metadata.name: is required"),
        ({}, "metadata.name: is required"),
    ],
)
def test_what_is_no_name_is_refused(corpus: Corpus, metadata: dict[str, Any], want: str) -> None:
    with pytest.raises(InputError, match=want):
        corpus.model.parse({"metadata": metadata, "spec": corpus.minimal})


@KINDS
def test_the_server_may_make_the_name(corpus: Corpus) -> None:
    corpus.model.parse({"metadata": {"generateName": "faq-"}, "spec": corpus.minimal})


@KINDS
def test_a_spec_survives_being_written_and_read(corpus: Corpus) -> None:
    spec = corpus.kind.spec.parse(corpus.full)
    assert corpus.kind.spec.parse(spec.model_dump(by_alias=True)) == spec


@KINDS
def test_the_corpus_is_large_and_has_good_and_bad_ones(corpus: Corpus) -> None:
    cases = corpus.cases()
    assert len(cases) >= 400
    assert sum(case.good for case in cases) >= 150
