"""How much longer two pods take from apply to their first step than one pod, with the real trainer on a real cluster.

Three shapes in turns: a pod with one rank, a pod with two, two pods with one each. A rank of several is a process
of its own, which imports torch once more: the second shape has that, too.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.nodes_on_a_cluster import PLENTY, SMALL
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, tuning_job, tuning_namespace

pytestmark = [pytest.mark.timeout(1800)]

ROUNDS = int(os.environ.get("ROUNDS", "3"))
MOST_SECONDS = 3.0
"""By which two pods may be later than one pod with as many ranks."""
SHAPES: dict[str, dict[str, Any]] = {"one": {}, "pair": {"gpus": 2}, "two": {"nodes": 2}}
MARKS = {"meets": " is there", "rows": "Rows: ", "learns": "padding-free"}
"""Lines of the trainer's log on the way to its first step."""


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    with tuning_namespace(cluster, trainer=TRAINER_IMAGE, values={"allowCPUFallback": "true"}) as namespace:
        yield namespace


def moments(space: TuningNamespace, name: str, shape: str) -> dict[str, float]:
    """Seconds from apply to each mark, and to the first step."""
    training = {**SMALL, "maxSteps": 2}
    applied = time.time()
    space.apply(tuning_job(name, resources={**PLENTY, **SHAPES[shape]}, training=training))
    space.wait(name, "Finished", seconds=600)
    pods = space.list("pods", f"tuning.llmtuning.dev/job={name},tuning.llmtuning.dev/role=train")
    found: dict[str, float] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        lines = space.kubectl("logs", "--timestamps", pod["metadata"]["name"]).splitlines()
        times = [(_seconds(line.partition(" ")[0]) - applied, line.partition(" ")[2]) for line in lines]
        started = _seconds(pod["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"]) - applied
        found["starts"] = max(started, found.get("starts", 0.0))
        for mark, text in MARKS.items():
            found[mark] = max([found.get(mark, 0.0), *(at for at, line in times if text in line)])
        for at, line in times:
            if line.startswith("{") and json.loads(line).get("step", 0) > 0 and "first step" not in found:
                found["first step"] = at
    space.kubectl("delete", "tj", name, "--wait")
    return found


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26].rstrip("Z") + "+00:00").timestamp()


def test_two_pods_do_their_first_step_three_seconds_after_one_pod_at_most(space: TuningNamespace) -> None:
    taken: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for number in range(-1, ROUNDS):  # the first fills the page cache
        for shape in SHAPES:
            found = moments(space, f"{shape}{number + 1}", shape)
            print(shape, {mark: round(at, 1) for mark, at in found.items()}, "load", os.getloadavg()[0], flush=True)
            if number >= 0:
                taken[shape].append(found["first step"])
    medians = {shape: statistics.median(times) for shape, times in taken.items()}
    print("apply to first step, median of", ROUNDS, {shape: round(at, 1) for shape, at in medians.items()})
    assert medians["two"] - medians["pair"] <= MOST_SECONDS
