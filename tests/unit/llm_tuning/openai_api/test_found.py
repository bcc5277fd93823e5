"""An object is read once for each of its versions, and forgotten when it is gone."""

from __future__ import annotations

from pathlib import Path

from llm_tuning.client.objects import TuningJobView
from llm_tuning.errors import InputError, Problem
from llm_tuning.openai_api.cluster import ClusterBackend
from llm_tuning.openai_api.found import Raw, ReadOnce
from tests.support.fake_api_server import FakeApiServer

SPEC = {
    "mode": "sft",
    "model": {"path": "base/tiny"},
    "dataset": {"path": "datasets/faq.json"},
    "volume": {"claimName": "tuning"},
}


def _raw(name: str, version: int = 1, *, uid: str | None = None, **spec: object) -> Raw:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}, "spec": spec}


class Reader:
    """Counts what it reads; an object without `text` it cannot read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, raw: Raw) -> str:
        self.read.append(raw["metadata"]["name"])
        if "text" not in raw["spec"]:
            raise InputError(Problem("spec.text", "is missing", "give it"))
        return str(raw["spec"]["text"])


def test_each_version_is_read_once() -> None:
    reader = Reader()
    objects = ReadOnce(reader)
    for _ in range(2):
        found = objects.list([_raw("a", text="one"), _raw("b", text="two")], is_all=True)
        assert list(found.readable) == ["one", "two"]
    assert reader.read == ["a", "b"]
    assert list(objects.list([_raw("a", 2, text="new"), _raw("b", text="two")], is_all=True).readable) == ["new", "two"]
    assert reader.read == ["a", "b", "a"]


def test_another_object_of_the_same_name_and_version_is_read() -> None:
    objects = ReadOnce(Reader())
    objects.list([_raw("a", text="one")], is_all=True)
    assert list(objects.list([_raw("a", uid="other", text="two")], is_all=True).readable) == ["two"]


def test_what_cannot_be_read_is_told_each_time() -> None:
    objects = ReadOnce(Reader())
    for _ in range(2):
        found = objects.list([_raw("a"), _raw("b", text="two")], is_all=True)
        assert [unreadable.name for unreadable in found.unreadable] == ["a"]
        assert list(found.readable) == ["two"]


def test_what_is_gone_is_forgotten_and_a_choice_forgets_nothing() -> None:
    reader = Reader()
    objects = ReadOnce(reader)
    both = [_raw("a", text="one"), _raw("b", text="two")]
    objects.list(both, is_all=True)
    objects.list(both[:1], is_all=False)
    objects.list(both, is_all=True)
    assert reader.read == ["a", "b"]
    objects.list(both[:1], is_all=True)
    objects.list(both, is_all=True)
    assert reader.read == ["a", "b", "b"]


async def test_a_list_of_the_cluster_has_each_job_as_it_is_now(tmp_path: Path) -> None:
    server = FakeApiServer()
    await server.start()
    backend = ClusterBackend(server.connection, tmp_path, "tuning")
    try:
        await server.put("tuningjobs", "faq", spec=SPEC)
        await server.put("tuningjobs", "news", spec=SPEC)
        before = {job.name: job for job in (await backend.jobs()).readable}
        await server.put("tuningjobs", "faq", spec=SPEC | {"suspend": True})
        after = {job.name: job for job in (await backend.jobs()).readable}
        assert (before["faq"].spec.suspend, after["faq"].spec.suspend) == (False, True)
        assert isinstance(after["faq"], TuningJobView)
        assert after["news"] is before["news"]
        await server.remove("tuningjobs", "faq")
        assert [job.name for job in (await backend.jobs()).readable] == ["news"]
    finally:
        await backend.close()
        await server.stop()
