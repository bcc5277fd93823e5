"""Every way to be stuck, made for real: each becomes a condition and an Event that say what to do, within a minute."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.admission import mutating_policy
from tests.support.tuning_namespace import TuningNamespace, claim, tuning_job, tuning_namespace, wait_until

WITHIN_SECONDS = 60.0

QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "three-gpus"},
    "spec": {"hard": {"requests.nvidia.com/gpu": "3"}},
}


def broken_volume(namespace: str) -> list[dict[str, Any]]:
    """A volume whose folder is not there: bound, scheduled, and then not mountable."""
    name = f"broken-{namespace}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": namespace, "name": "broken"},
            "hostPath": {"path": "/nonexistent/folder", "type": "Directory"},
        },
    }
    bound = claim("broken", storage_class="")
    bound["spec"]["volumeName"] = name
    return [volume, bound]


def unfit_pods(namespace: str) -> list[dict[str, Any]]:
    """What an injector of sidecars may do to pods: make them unfit for the namespace's profile."""
    name = f"unfit-{namespace}"
    change = "Object{spec: Object.spec{hostNetwork: true}}"
    return mutating_policy(name, namespace, labels={"tuning.llmtuning.dev/job": "pod-security"}, change=change)


ROWS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    # name: (the TuningJob's spec, the reason, what the message has to name)
    "secret": (
        {"tracking": {"uri": "http://mlflow.example", "credentialsSecret": {"name": "llm-tuning-none"}}},
        "SecretNotFound",
        ("llm-tuning-none",),
    ),
    "config-map": ({"dataset": {"configMap": {"name": "none", "key": "rows.jsonl"}}}, "ConfigMapNotFound", ("none",)),
    "claim": ({"volume": {"claimName": "none"}}, "ClaimNotFound", ("none",)),
    "pending-claim": ({"volume": {"claimName": "pending"}}, "ClaimPending", ("pending",)),
    "failed-mount": ({"volume": {"claimName": "broken"}}, "VolumeMountFailed", ("/nonexistent/folder",)),
    "unschedulable": ({"resources": {"gpus": 3}}, "Unschedulable", ("nvidia.com/gpu",)),
    "quota": ({"resources": {"gpus": 4}}, "QuotaExceeded", ("three-gpus",)),
    "runtime-class": (
        {"resources": {"gpus": 1, "runtimeClassName": "none"}},
        "RuntimeClassNotFound",
        ("spec.resources.runtimeClassName", "none"),
    ),
    "pod-security": ({}, "PodSecurityDenied", ("restricted",)),
    "dies": ({"stand_in": "crash", "retries": 3}, "TrainerFailing", ("logs",)),
    "oom": ({"stand_in": "oom", "retries": 3}, "OutOfMemory", ("memory",)),
    "deadline": ({"stand_in": "sleep=90", "activeDeadlineSeconds": 12}, "DeadlineExceeded", ("12",)),
}


@pytest.fixture(scope="module")
def stuck(cluster: Any) -> Iterator[tuple[TuningNamespace, float]]:
    """All of them applied at once, and when."""
    with tuning_namespace(cluster) as namespace:
        namespace.apply(QUOTA, claim("pending", storage_class="none"))
        cluster.kubectl("apply", "-f", "-", input=_yaml(broken_volume(namespace.name)[:1]))
        namespace.apply(*broken_volume(namespace.name)[1:])
        cluster.kubectl("apply", "-f", "-", input=_yaml(unfit_pods(namespace.name)))
        try:
            time.sleep(2)  # a policy is in force a moment after it was made
            applied = time.time()
            namespace.apply(*(tuning_job(name, **spec) for name, (spec, _, _) in ROWS.items()))
            yield namespace, applied
        finally:
            for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
                cluster.kubectl("delete", kind, f"unfit-{namespace.name}")
            cluster.kubectl("delete", "pv", f"broken-{namespace.name}", "--wait=false")


@pytest.mark.parametrize("name", ROWS)
def test_a_stuck_job_says_what_to_do_within_a_minute(stuck: tuple[TuningNamespace, float], name: str) -> None:
    namespace, applied = stuck
    _, reason, named = ROWS[name]
    assert_said(namespace, name, reason, named, applied)


def assert_said(namespace: TuningNamespace, name: str, reason: str, named: tuple[str, ...], applied: float) -> None:
    """The condition and the Event are there, in time and with the words."""

    def saying() -> list[dict[str, Any]]:
        # The same reason may come twice: the check's pod lacks room for a moment, the trainer's for ever.
        conditions = namespace.conditions(name).values()
        return [c for c in conditions if c["reason"] == reason and all(word in c["message"] for word in named)]

    def is_told() -> bool:
        words = saying()[0]["message"]
        return any(e["type"] == "Warning" and e["message"] == words for e in namespace.events(name))

    left = max(5.0, applied + WITHIN_SECONDS + 30 - time.time())
    wait_until(lambda: bool(saying()), left, lambda: f"{reason} of {name}; has {namespace.conditions(name)}")
    wait_until(is_told, 10, lambda: f"an Event {saying()[0]}; has {namespace.events(name)}")
    condition = saying()[0]
    said = datetime.fromisoformat(condition["lastTransitionTime"]).timestamp() - applied
    print(f"stuck: {name:>14} {reason:<18} {said:5.1f} s  {condition['message']}")
    assert said <= WITHIN_SECONDS


def test_an_image_that_cannot_be_pulled(cluster: Any) -> None:
    with tuning_namespace(cluster, trainer="localhost/llm-tuning/none:none") as namespace:
        applied = time.time()
        namespace.apply(tuning_job("image"))
        assert_said(namespace, "image", "ImagePullFailed", ("localhost/llm-tuning/none:none",), applied)


def _yaml(objects: list[dict[str, Any]]) -> str:
    import yaml

    return yaml.safe_dump_all(objects)
