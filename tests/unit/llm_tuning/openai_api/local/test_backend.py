"""The backend of one machine, up to where processes begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.client.errors import NotFound
from llm_tuning.openai_api.local.backend import LocalBackend

JOB = {
    "apiVersion": "tuning.llmtuning.dev/v1alpha1",
    "kind": "TuningJob",
    "metadata": {"name": "faq", "labels": {"a": "b"}},
    "spec": {
        "model": {"path": "base/tiny"},
        "dataset": {"path": "datasets/faq.json"},
        "volume": {"claimName": "local"},
    },
}
SERVICE = {
    "apiVersion": "tuning.llmtuning.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "tiny"},
    "spec": {"model": {"path": "base/tiny"}, "volume": {"claimName": "local"}},
}


async def test_it_speaks_the_projects_own_objects(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    made = await backend.create_job(JOB)
    assert (made.name, made.is_finished, (await backend.job("faq")).uid) == ("faq", False, made.uid)
    assert (await backend.change_job("faq", {"spec": {"suspend": True}})).spec.suspend
    assert [job.name for job in await backend.jobs({"a": "b"})] == ["faq"]
    service = await backend.create_service(SERVICE)
    assert backend.url(service) is None
    assert (await backend.change_service("tiny", {"spec": {"replicas": 0}})).spec.replicas == 0
    assert [each.name for each in await backend.services()] == ["tiny"]
    with pytest.raises(NotFound):
        await backend.job("other")
    await backend.close()


async def test_a_job_that_somebody_has_spoiled_hides_no_other(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    await backend.create_job(JOB)
    spoiled = (tmp_path / "api" / "tuningjobs" / "faq.json").read_text().replace('"base/tiny"', "3")
    (tmp_path / "api" / "tuningjobs" / "spoiled.json").write_text(spoiled)
    assert [job.name for job in await backend.jobs()] == ["faq"]
    await backend.close()
