"""A training of several pods on a real cluster, as a test watches it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_tuning.pod.roles import TRAIN
from tests.support.admission import mutating_policy
from tests.support.tuning_namespace import TRAINER_IMAGE, TuningNamespace, wait_until
from tuning_operator.core.constants import LABEL_INDEX, LABEL_ROLE

SMALL = {"batchSize": 2, "maxLength": 64}
PLENTY = {"cpu": "200m", "memory": "3Gi"}
"""For a real trainer of the tiny base."""


@dataclass
class Training:
    """One TuningJob, and the Jobs that it has had."""

    space: TuningNamespace
    name: str
    jobs: list[str] = field(default_factory=list)
    """uids, in their order."""

    @property
    def status(self) -> dict[str, Any]:
        return dict((self.space.get("tj", self.name) or {}).get("status") or {})

    @property
    def step(self) -> int:
        return int((self.status.get("progress") or {}).get("step") or 0)

    def has_begun(self) -> bool:
        """Whether the present Job has done a step, by the log of index 0: the status comes seconds later."""
        found = [pod for pod in self.pods() if pod["metadata"]["labels"][LABEL_INDEX] == "0"]
        ours = [pod for pod in found if pod["metadata"]["ownerReferences"][0]["uid"] == self.job()]
        started = [pod for pod in ours if pod["status"].get("phase") not in (None, "Pending")]
        return bool(started) and '"step":' in self.space.kubectl("logs", started[0]["metadata"]["name"])

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return list(self.status.get("nodes") or ())

    def pods(self) -> list[dict[str, Any]]:
        """Those that train; no two Jobs may have one that lives."""
        selector = f"tuning.llmtuning.dev/job={self.name},tuning.llmtuning.dev/role=train"
        pods = self.space.list("pods", selector)
        alive = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
        assert len({pod["metadata"]["ownerReferences"][0]["uid"] for pod in alive}) <= 1, "two generations"
        return pods

    def pod_of(self, index: int) -> str:
        """The name of the newest pod of an index."""
        found = [pod for pod in self.pods() if pod["metadata"]["labels"][LABEL_INDEX] == str(index)]
        return str(max(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))["metadata"]["name"])

    def job(self) -> str:
        """The uid of the present Job, which is kept."""
        found = self.space.get("job", f"{self.name}-train")
        if found is None:
            return ""
        uid = str(found["metadata"]["uid"])
        if uid not in self.jobs:
            self.jobs.append(uid)
        return uid

    def next_job(self, seconds: float = 240) -> None:
        """Wait for another Job than those that were seen: `job` has to be asked before what ends the last one."""
        before = len(self.jobs)
        assert before, "no Job was seen"

        def came() -> bool:
            self.pods()
            self.job()
            return len(self.jobs) > before

        wait_until(came, seconds, lambda: f"another Job; has {self.status}")


def adapter_hash(space: TuningNamespace, name: str) -> str:
    """Of what a TuningJob has published."""
    path = f"/workspace/{Training(space, name).status['adapterPath']}/adapter_model.safetensors"
    return space.run(f"hash-{name}", TRAINER_IMAGE, "sha256sum", path).split()[0]


FAULTS = Path(__file__).with_name("rank_faults") / "sitecustomize.py"


class Orders:
    """Faults that ranks of this namespace's trainers meet, one after the other: see rank_faults/sitecustomize.py."""

    def __init__(self, space: TuningNamespace) -> None:
        self._space, self._calls = space, 0
        self._in_a_pod(
            "import sys; from pathlib import Path; f = Path('/workspace/faults'); (f / 'orders').mkdir(parents=True);"
            "(f / 'sitecustomize.py').write_text(sys.argv[1])",
            FAULTS.read_text(),
        )

    def give(self, *orders: str) -> list[str]:
        """Give them in this order: `forward@1`, `checkpoint@0`; returns their names."""
        names = [f"{self._calls}{number}-{order}" for number, order in enumerate(orders)]
        self._in_a_pod(f"from pathlib import Path; [Path('/workspace/faults/orders', n).touch() for n in {names}]")
        return names

    def take_back(self, order: str) -> None:
        self._in_a_pod(f"import glob, os; [os.unlink(p) for p in glob.glob('/workspace/faults/orders/*-{order}')]")

    def deaths(self) -> dict[str, float]:
        """When the ranks died, in Unix time, by `NUMBER-WHERE@RANK`."""
        lines = self._in_a_pod("print(open('/workspace/faults/deaths').read())").split()
        return dict(zip(lines[::2], map(float, lines[1::2]), strict=True))

    def _in_a_pod(self, code: str, *arguments: str) -> str:
        self._calls += 1
        return self._space.run(f"orders-{self._calls}", TRAINER_IMAGE, "python", "-c", code, *arguments, seconds=120)


@contextmanager
def rank_faults(space: TuningNamespace) -> Iterator[Orders]:
    """Trainers of the namespace import the module of faults, which stands on the claim."""
    name = f"faults-{space.name}"
    orders = Orders(space)
    container = 'Object.spec.containers{name: "trainer", env: [Object.spec.containers.env{name: "PYTHONPATH", value: '
    change = f'Object{{spec: Object.spec{{containers: [{container}"/workspace/faults:/opt/llm-tuning"}}]}}]}}}}'
    objects = mutating_policy(name, space.name, labels={LABEL_ROLE: TRAIN}, change=change)
    space.cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))
    try:
        time.sleep(2)  # a policy is in force a moment after it was made
        yield orders
    finally:
        for kind in ("mutatingadmissionpolicybinding", "mutatingadmissionpolicy"):
            space.cluster.kubectl("delete", kind, name)
