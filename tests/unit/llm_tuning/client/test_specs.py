"""A text for a base or a data set is a path or a URI; what serves an adapter names the base of its training."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api.tuning_job import TuningJob
from llm_tuning.client.objects import TuningJobView
from llm_tuning.client.specs import build_inference_service, build_tuning_job, serving_fields
from llm_tuning.errors import InputError

FOUND = {"uri": "hf://owner/tiny", "revision": "abc", "path": "sources/hf/owner/tiny/abc"}


def test_a_text_with_a_scheme_is_a_uri() -> None:
    made = build_tuning_job("faq", {"model": "hf://owner/tiny", "dataset": "s3://bucket/faq.json", "volume": "tuning"})
    assert made["spec"]["model"] == {"uri": "hf://owner/tiny"}
    assert made["spec"]["dataset"] == {"uri": "s3://bucket/faq.json"}
    assert made["spec"]["volume"] == {"claimName": "tuning"}
    served = build_inference_service("faq", {"model": "hf://owner/tiny", "volume": "tuning"})
    assert served["spec"]["model"] == {"uri": "hf://owner/tiny"}


def test_a_uri_that_is_none_is_refused_with_its_field() -> None:
    with pytest.raises(InputError, match=r"spec\.model\.uri: must begin with hf://"):
        build_tuning_job("faq", {"model": "ftp://owner/tiny", "dataset": "faq.json", "volume": "tuning"})


@pytest.mark.parametrize(
    ("model", "status", "want"),
    [
        ({"path": "base/tiny"}, None, "base/tiny"),
        ({"uri": "hf://owner/tiny@main"}, {"model": FOUND}, {"path": FOUND["path"], "name": "tiny"}),
        (
            {"uri": "hf://owner/tiny", "credentialsSecret": {"name": "llm-tuning-hub"}},
            None,
            {"uri": "hf://owner/tiny", "credentialsSecret": {"name": "llm-tuning-hub"}},
        ),
    ],
    ids=["path", "fetched", "not yet fetched"],
)
def test_an_adapter_is_served_on_its_base(model: dict[str, Any], status: dict[str, Any] | None, want: Any) -> None:
    spec = {"model": model, "dataset": {"path": "faq.json"}, "volume": {"claimName": "tuning"}}
    job: TuningJob = TuningJobView.of({"metadata": {"name": "faq"}, "spec": spec, "status": status})
    made = build_inference_service("faq", serving_fields(job, "answers"))
    assert made["spec"]["model"] == (want if isinstance(want, dict) else {"path": want})
