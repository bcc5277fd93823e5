"""The backend of one machine, up to where processes begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_tuning.client.errors import NotFound
from llm_tuning.client.objects import InferenceServiceView
from llm_tuning.openai_api.local.backend import LocalBackend
from tests.support.openai_world import condition

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
    assert [job.name for job in (await backend.jobs({"a": "b"})).readable] == ["faq"]
    service = await backend.create_service(SERVICE)
    assert backend.url(service) is None
    assert (await backend.change_service("tiny", {"spec": {"replicas": 0}})).spec.replicas == 0
    assert [each.name for each in (await backend.services()).readable] == ["tiny"]
    with pytest.raises(NotFound):
        await backend.job("other")
    await backend.close()


async def test_a_job_that_somebody_has_spoiled_hides_no_other(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path)
    await backend.create_job(JOB)
    spoiled = (tmp_path / "api" / "tuningjobs" / "faq.json").read_text().replace('"base/tiny"', "3")
    (tmp_path / "api" / "tuningjobs" / "spoiled.json").write_text(spoiled)
    found = await backend.jobs()
    assert [job.name for job in found.readable] == ["faq"]
    assert "model.path" in found.unreadable[0].why
    await backend.close()


async def test_what_cannot_be_served_on_this_machine_waits_for_who_asks(tmp_path: Path) -> None:
    """Nobody else mends it, so that no client need try again by itself."""
    backend = LocalBackend(tmp_path)
    assert not backend.is_hopeless(await backend.create_service(SERVICE))
    raw = SERVICE | {"metadata": {"name": "tiny", "namespace": "local"}}
    for reason, hopeless in (("PlanFailed", True), ("EngineFailing", False)):
        stalled = InferenceServiceView.of(raw | {"status": {"conditions": [condition("Stalled", "True", reason)]}})
        assert backend.is_hopeless(stalled) is hopeless
    await backend.close()
