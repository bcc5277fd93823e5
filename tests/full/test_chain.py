"""Exit codes, the time to live and deletion on a real Kubernetes."""

from __future__ import annotations

import time

from tests.cluster.test_chain import space
from tests.support.tuning_namespace import (
    STAND_IN_IMAGE,
    TuningNamespace,
    tuning_job,
    wait_until,
)

__all__ = ["space"]  # fixtures of the tests below


def test_exit_64_is_never_retried_and_75_is(space: TuningNamespace) -> None:
    space.apply(
        tuning_job("refused", stand_in="exit=64", retries=5), tuning_job("again", stand_in="exit=75", retries=1)
    )
    space.wait("refused", "Finished")
    assert len(space.list("pods", "tuning.llmtuning.dev/job=refused,tuning.llmtuning.dev/role=train")) == 1
    space.wait("again", "Finished", seconds=120)
    assert len(space.list("pods", "tuning.llmtuning.dev/job=again,tuning.llmtuning.dev/role=train")) == 2
    assert space.conditions("again")["Succeeded"]["status"] == "False"


def test_ttl_removes_the_object_and_keeps_the_adapter(space: TuningNamespace) -> None:
    space.apply(tuning_job("brief", ttlSecondsAfterFinished=5))
    job = space.wait("brief", "Finished")
    wait_until(lambda: space.get("tj", "brief") is None, 30, "the object's end")
    wait_until(lambda: not space.list("jobs", "tuning.llmtuning.dev/job=brief"), 30, "its Jobs' end")
    shown = space.run("show", STAND_IN_IMAGE, "ls", f"/workspace/{job['status']['adapterPath']}")
    assert "adapter_model.safetensors" in shown


def test_deletion_at_any_moment_leaves_nothing_running(space: TuningNamespace) -> None:
    names = [f"gone-{number}" for number in range(4)]
    for number, name in enumerate(names):
        space.apply(tuning_job(name, stand_in="sleep=20"))
        time.sleep(number)
    for name in names:
        space.kubectl("delete", "tj", name, "--wait=false")
    selector = f"tuning.llmtuning.dev/job in ({','.join(names)})"
    wait_until(
        lambda: not space.list("jobs", selector) and not space.list("pods", selector), 60, "their children's end"
    )
