"""The cache: of two versions the newer one counts, what is gone stays gone, and each change names its TuningJob."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.pod.roles import CHECK, TRAIN
from tests.support.operator_objects import UID, Raw, make_job, make_pod, make_tuning_job
from tuning_operator.core.cache import JOBS, PODS, TUNING_JOBS, Cache, Key, trimmed
from tuning_operator.core.constants import LABEL_UID

FAQ: Key = ("team", "faq")


class Changes(list[Key]):
    """Keys that were told, since last asked."""

    def take(self) -> list[Key]:
        taken = list(self)
        self.clear()
        return taken


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def cache(changes: Changes) -> Cache:
    return Cache({TUNING_JOBS: changes.append})


def at_version(raw: Raw, version: int, **metadata: Any) -> Raw:
    return {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(version), **metadata}}


def test_the_newer_version_counts_whichever_comes_first(cache: Cache, changes: Changes) -> None:
    job = make_tuning_job()
    cache.put(TUNING_JOBS, at_version(job, 10, generation=2))
    assert changes.take() == [FAQ]
    cache.apply_event(TUNING_JOBS, "MODIFIED", at_version(job, 9))
    cache.apply_event(TUNING_JOBS, "MODIFIED", at_version(job, 10))
    assert changes.take() == []
    assert (cache.get(TUNING_JOBS, *FAQ) or {})["metadata"]["generation"] == 2


def test_versions_are_numbers_and_not_text(cache: Cache) -> None:
    cache.put(TUNING_JOBS, at_version(make_tuning_job(), 9))
    cache.put(TUNING_JOBS, at_version(make_tuning_job(), 10, generation=2))
    assert (cache.get(TUNING_JOBS, *FAQ) or {})["metadata"]["generation"] == 2


def test_what_was_deleted_does_not_come_back_by_a_late_event(cache: Cache, changes: Changes) -> None:
    job = make_job()
    cache.put(JOBS, at_version(job, 1))
    cache.apply_event(JOBS, "DELETED", at_version(job, 5))
    assert changes.take() == [FAQ, FAQ]
    cache.apply_event(JOBS, "MODIFIED", at_version(job, 4))
    assert cache.get(JOBS, "team", "faq-train") is None
    cache.put(JOBS, at_version(make_job(uid="the next"), 6))
    assert cache.get(JOBS, "team", "faq-train") is not None


def test_a_late_end_of_an_earlier_object_does_not_end_its_namesake(cache: Cache) -> None:
    cache.put(JOBS, at_version(make_job(uid="new"), 6))
    cache.apply_event(JOBS, "DELETED", at_version(make_job(uid="old"), 5))
    assert (cache.get(JOBS, "team", "faq-train") or {})["metadata"]["uid"] == "new"


def test_a_namesake_takes_the_place(cache: Cache) -> None:
    cache.put(PODS, at_version(make_pod(owner="first"), 1))
    cache.put(PODS, at_version({**make_pod(owner="second"), "status": {}}, 2, uid="another"))
    assert cache.pods_of("first") == []
    assert len(cache.pods_of("second")) == 1


def test_pods_are_found_by_the_uid_on_their_label_even_if_it_is_changed(cache: Cache) -> None:
    pod = make_pod()
    cache.put(PODS, at_version(pod, 1))
    assert len(cache.pods_of(UID)) == 1
    labels = {**pod["metadata"]["labels"], LABEL_UID: "x"}
    cache.put(PODS, at_version(pod, 2, labels=labels))
    assert cache.pods_of(UID) == []
    cache.apply_event(PODS, "DELETED", at_version(pod, 3, labels=labels))
    assert cache.pods_of(UID) == cache.pods_of("x") == []


def test_every_change_of_a_child_names_its_tuning_job(cache: Cache, changes: Changes) -> None:
    for kind, raw in ((JOBS, make_job(CHECK)), (PODS, make_pod(CHECK))):
        cache.apply_event(kind, "ADDED", at_version(raw, 1))
        cache.apply_event(kind, "MODIFIED", at_version(raw, 2))
        cache.apply_event(kind, "DELETED", at_version(raw, 3))
        assert changes.take() == [FAQ] * 3


def test_who_starts_from_a_job_hears_of_it(cache: Cache, changes: Changes) -> None:
    model = {"path": "base/tiny", "adapter": {"tuningJob": "faq"}}
    cache.put(TUNING_JOBS, at_version(make_tuning_job("second", uid="second", model=model), 1))
    changes.take()
    cache.put(TUNING_JOBS, at_version(make_tuning_job(), 2))
    assert changes.take() == [FAQ, ("team", "second")]
    cache.apply_event(TUNING_JOBS, "DELETED", at_version(make_tuning_job(), 3))
    assert changes.take() == [FAQ, ("team", "second")]
    cache.apply_event(TUNING_JOBS, "DELETED", at_version(make_tuning_job("second", uid="second", model=model), 4))
    changes.take()
    cache.put(TUNING_JOBS, at_version(make_tuning_job(uid="new"), 5))
    assert changes.take() == [FAQ]


# --- lists -----------------------------------------------------------------------------------------------------------


def test_a_list_heals_what_a_watch_has_lost_and_says_what_that_was(cache: Cache, changes: Changes) -> None:
    cache.put(JOBS, at_version(make_job(CHECK), 1))
    cache.put(JOBS, at_version(make_job(TRAIN), 2))
    changes.take()
    listed = [at_version(make_job(TRAIN), 7), at_version(make_job("report"), 8)]
    assert sorted(cache.apply_list(JOBS, listed, "9", None)) == ["team/faq-check", "team/faq-report", "team/faq-train"]
    assert changes.take() == [FAQ] * 3
    assert cache.get(JOBS, "team", "faq-check") is None
    assert cache.apply_list(JOBS, listed, "9", None) == []


def test_what_is_newer_than_the_list_stays(cache: Cache) -> None:
    cache.put(JOBS, at_version(make_job(), 10))
    assert cache.apply_list(JOBS, [], "9", None) == []
    assert cache.get(JOBS, "team", "faq-train") is not None


def test_the_list_of_a_namespace_says_nothing_of_another(cache: Cache) -> None:
    cache.put(JOBS, at_version(make_job(), 1))
    assert cache.apply_list(JOBS, [], "9", "other") == []
    assert cache.apply_list(JOBS, [], "9", "team") == ["team/faq-train"]


def test_an_event_before_the_list_does_not_bring_back_what_the_list_lacks(cache: Cache) -> None:
    cache.put(JOBS, at_version(make_job(), 1))
    cache.apply_list(JOBS, [], "9", None)
    cache.apply_event(JOBS, "MODIFIED", at_version(make_job(), 5))
    assert cache.get(JOBS, "team", "faq-train") is None


def test_somebody_elses_job_is_in_no_list_and_no_watch_and_that_is_no_deaf_watch(cache: Cache) -> None:
    foreign = at_version({"metadata": {"namespace": "team", "name": "faq-check", "uid": "x"}}, 1)
    cache.put(JOBS, foreign)
    assert cache.apply_list(JOBS, [], "9", None) == []
    assert cache.get(JOBS, "team", "faq-check") is None
    cache.put(JOBS, foreign)  # it is read again: it is still there
    assert cache.get(JOBS, "team", "faq-check") is not None


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_spec_is_parsed_once_for_each_generation(cache: Cache) -> None:
    raw = at_version(make_tuning_job(), 1)
    first = cache.spec_of(raw, TuningJobSpec)
    assert cache.spec_of(at_version(raw, 2), TuningJobSpec) is first
    changed = at_version(make_tuning_job(suspend=True), 3, generation=2)
    spec = cache.spec_of(changed, TuningJobSpec)
    assert spec is not None
    assert spec.suspend
    assert cache.spec_of(at_version(make_tuning_job(uid="bad", mode="none"), 4), TuningJobSpec) is None


def test_nothing_is_kept_of_what_is_gone(cache: Cache) -> None:
    model = {"path": "base/tiny", "adapter": {"tuningJob": "other"}}
    objects = {TUNING_JOBS: make_tuning_job(model=model), JOBS: make_job(), PODS: make_pod()}
    for kind, raw in objects.items():
        cache.put(kind, at_version(raw, 1))
    cache.spec_of(at_version(objects[TUNING_JOBS], 1), TuningJobSpec)
    for kind, raw in objects.items():
        cache.apply_event(kind, "DELETED", at_version(raw, 2))
    assert not any(cache.sizes().values())
    assert cache._by_uid == {JOBS: {}, PODS: {}}
    assert cache._specs == {}
    assert cache._waiting_for == {}


def test_of_an_object_only_what_passes_read_is_kept() -> None:
    pod = make_pod()
    pod["spec"] = {"containers": [{"image": "i", "env": [{"name": "LONG", "value": "x" * 1000}]}], "volumes": []}
    pod["metadata"]["managedFields"] = [{}]
    kept = trimmed(PODS, pod)
    assert kept["spec"] == {"containers": [{"image": "i"}]}
    assert "managedFields" not in kept["metadata"]
    job = {**make_job(suspended=True), "spec": {"suspend": True, "backoffLimit": 1, "template": {}}}
    assert trimmed(JOBS, job)["spec"] == {"suspend": True, "backoffLimit": 1}


def test_a_watch_that_speaks_is_noted(cache: Cache) -> None:
    cache.put(JOBS, at_version(make_job(), 1))
    assert JOBS not in cache.delivered
    cache.apply_event(JOBS, None, at_version(make_job(), 1))
    assert cache.delivered[JOBS] > 0
