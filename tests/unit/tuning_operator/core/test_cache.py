"""The store: of two versions the newer one counts, what is gone stays gone, and each change names its TuningJob."""

from __future__ import annotations

from typing import Any

import pytest

from llm_tuning.pod.contract import CHECK, TRAIN
from tests.support.operator_objects import UID, Raw, make_job, make_pod, make_tuning_job
from tuning_operator.core.cache import JOBS, PODS, TUNING_JOBS, Key, Store, trimmed
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
def store(changes: Changes) -> Store:
    return Store(changes.append)


def at_version(raw: Raw, version: int, **metadata: Any) -> Raw:
    return {**raw, "metadata": {**raw["metadata"], "resourceVersion": str(version), **metadata}}


def test_the_newer_version_counts_whichever_comes_first(store: Store, changes: Changes) -> None:
    job = make_tuning_job()
    store.put(TUNING_JOBS, at_version(job, 10, generation=2))
    assert changes.take() == [FAQ]
    store.apply_event(TUNING_JOBS, "MODIFIED", at_version(job, 9))
    store.apply_event(TUNING_JOBS, "MODIFIED", at_version(job, 10))
    assert changes.take() == []
    assert (store.tuning_job(*FAQ) or {})["metadata"]["generation"] == 2


def test_versions_are_numbers_and_not_text(store: Store) -> None:
    store.put(TUNING_JOBS, at_version(make_tuning_job(), 9))
    store.put(TUNING_JOBS, at_version(make_tuning_job(), 10, generation=2))
    assert (store.tuning_job(*FAQ) or {})["metadata"]["generation"] == 2


def test_what_was_deleted_does_not_come_back_by_a_late_event(store: Store, changes: Changes) -> None:
    job = make_job()
    store.put(JOBS, at_version(job, 1))
    store.apply_event(JOBS, "DELETED", at_version(job, 5))
    assert changes.take() == [FAQ, FAQ]
    store.apply_event(JOBS, "MODIFIED", at_version(job, 4))
    assert store.job("team", "faq-train") is None
    store.put(JOBS, at_version(make_job(uid="the next"), 6))
    assert store.job("team", "faq-train") is not None


def test_a_late_end_of_an_earlier_object_does_not_end_its_namesake(store: Store) -> None:
    store.put(JOBS, at_version(make_job(uid="new"), 6))
    store.apply_event(JOBS, "DELETED", at_version(make_job(uid="old"), 5))
    assert (store.job("team", "faq-train") or {})["metadata"]["uid"] == "new"


def test_a_namesake_takes_the_place(store: Store) -> None:
    store.put(PODS, at_version(make_pod(owner="first"), 1))
    store.put(PODS, at_version({**make_pod(owner="second"), "status": {}}, 2, uid="another"))
    assert store.pods_of("first") == []
    assert len(store.pods_of("second")) == 1


def test_pods_are_found_by_the_uid_on_their_label_even_if_it_is_changed(store: Store) -> None:
    pod = make_pod()
    store.put(PODS, at_version(pod, 1))
    assert len(store.pods_of(UID)) == 1
    labels = {**pod["metadata"]["labels"], LABEL_UID: "x"}
    store.put(PODS, at_version(pod, 2, labels=labels))
    assert store.pods_of(UID) == []
    store.apply_event(PODS, "DELETED", at_version(pod, 3, labels=labels))
    assert store.pods_of(UID) == store.pods_of("x") == []


def test_every_change_of_a_child_names_its_tuning_job(store: Store, changes: Changes) -> None:
    for kind, raw in ((JOBS, make_job(CHECK)), (PODS, make_pod(CHECK))):
        store.apply_event(kind, "ADDED", at_version(raw, 1))
        store.apply_event(kind, "MODIFIED", at_version(raw, 2))
        store.apply_event(kind, "DELETED", at_version(raw, 3))
        assert changes.take() == [FAQ] * 3


def test_who_starts_from_a_job_hears_of_it(store: Store, changes: Changes) -> None:
    model = {"path": "base/tiny", "adapter": {"tuningJob": "faq"}}
    store.put(TUNING_JOBS, at_version(make_tuning_job("second", uid="second", model=model), 1))
    changes.take()
    store.put(TUNING_JOBS, at_version(make_tuning_job(), 2))
    assert changes.take() == [FAQ, ("team", "second")]
    store.apply_event(TUNING_JOBS, "DELETED", at_version(make_tuning_job(), 3))
    assert changes.take() == [FAQ, ("team", "second")]
    store.apply_event(TUNING_JOBS, "DELETED", at_version(make_tuning_job("second", uid="second", model=model), 4))
    changes.take()
    store.put(TUNING_JOBS, at_version(make_tuning_job(uid="new"), 5))
    assert changes.take() == [FAQ]


# --- lists -----------------------------------------------------------------------------------------------------------


def test_a_list_heals_what_a_watch_has_lost_and_says_what_that_was(store: Store, changes: Changes) -> None:
    store.put(JOBS, at_version(make_job(CHECK), 1))
    store.put(JOBS, at_version(make_job(TRAIN), 2))
    changes.take()
    listed = [at_version(make_job(TRAIN), 7), at_version(make_job("report"), 8)]
    assert sorted(store.apply_list(JOBS, listed, "9", None)) == ["team/faq-check", "team/faq-report", "team/faq-train"]
    assert changes.take() == [FAQ] * 3
    assert store.job("team", "faq-check") is None
    assert store.apply_list(JOBS, listed, "9", None) == []


def test_what_is_newer_than_the_list_stays(store: Store) -> None:
    store.put(JOBS, at_version(make_job(), 10))
    assert store.apply_list(JOBS, [], "9", None) == []
    assert store.job("team", "faq-train") is not None


def test_the_list_of_a_namespace_says_nothing_of_another(store: Store) -> None:
    store.put(JOBS, at_version(make_job(), 1))
    assert store.apply_list(JOBS, [], "9", "other") == []
    assert store.apply_list(JOBS, [], "9", "team") == ["team/faq-train"]


def test_an_event_before_the_list_does_not_bring_back_what_the_list_lacks(store: Store) -> None:
    store.put(JOBS, at_version(make_job(), 1))
    store.apply_list(JOBS, [], "9", None)
    store.apply_event(JOBS, "MODIFIED", at_version(make_job(), 5))
    assert store.job("team", "faq-train") is None


def test_somebody_elses_job_is_in_no_list_and_no_watch_and_that_is_no_deaf_watch(store: Store) -> None:
    foreign = at_version({"metadata": {"namespace": "team", "name": "faq-check", "uid": "x"}}, 1)
    store.put(JOBS, foreign)
    assert store.apply_list(JOBS, [], "9", None) == []
    assert store.job("team", "faq-check") is None
    store.put(JOBS, foreign)  # it is read again: it is still there
    assert store.job("team", "faq-check") is not None


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_spec_is_parsed_once_for_each_generation(store: Store) -> None:
    raw = at_version(make_tuning_job(), 1)
    first = store.spec_of(raw)
    assert store.spec_of(at_version(raw, 2)) is first
    changed = at_version(make_tuning_job(suspend=True), 3, generation=2)
    spec = store.spec_of(changed)
    assert spec is not None
    assert spec.suspend
    assert store.spec_of(at_version(make_tuning_job(uid="bad", mode="dpo"), 4)) is None


def test_nothing_is_kept_of_what_is_gone(store: Store) -> None:
    model = {"path": "base/tiny", "adapter": {"tuningJob": "other"}}
    objects = {TUNING_JOBS: make_tuning_job(model=model), JOBS: make_job(), PODS: make_pod()}
    for kind, raw in objects.items():
        store.put(kind, at_version(raw, 1))
    store.spec_of(at_version(objects[TUNING_JOBS], 1))
    for kind, raw in objects.items():
        store.apply_event(kind, "DELETED", at_version(raw, 2))
    assert not any(store.sizes().values())
    assert store._by_uid == {JOBS: {}, PODS: {}}
    assert store._specs == {}
    assert store._waiting_for == {}


def test_of_an_object_only_what_passes_read_is_kept() -> None:
    pod = make_pod()
    pod["spec"] = {"containers": [{"image": "i", "env": [{"name": "LONG", "value": "x" * 1000}]}], "volumes": []}
    pod["metadata"]["managedFields"] = [{}]
    kept = trimmed(PODS, pod)
    assert kept["spec"] == {"containers": [{"image": "i"}]}
    assert "managedFields" not in kept["metadata"]
    job = {**make_job(suspended=True), "spec": {"suspend": True, "backoffLimit": 1, "template": {}}}
    assert trimmed(JOBS, job)["spec"] == {"suspend": True, "backoffLimit": 1}


def test_a_watch_that_speaks_is_noted(store: Store) -> None:
    store.put(JOBS, at_version(make_job(), 1))
    assert JOBS not in store.delivered
    store.apply_event(JOBS, None, at_version(make_job(), 1))
    assert store.delivered[JOBS] > 0
