"""A namespace with a claim that holds a tiny base model and data sets, for tests that apply TuningJobs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.devcluster import load

CHART = Path(__file__).resolve().parents[2] / "charts" / "llm-tuning"
OPERATOR_IMAGE = "localhost/llm-tuning/operator:dev"
TRAINER_IMAGE = "localhost/llm-tuning/trainer:dev"
STAND_IN_IMAGE = "localhost/llm-tuning/stand-in:dev"
OURS = {OPERATOR_IMAGE, TRAINER_IMAGE, STAND_IN_IMAGE}
CLAIM = "tuning"

SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: dict[str, Any] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def tuning_job(
    name: str, *, dataset: str | dict[str, Any] = "datasets/good.jsonl", stand_in: str = "", **spec: Any
) -> dict[str, Any]:
    """A TuningJob on the tiny base; `stand_in` tells the stand-in what to do (`sleep=5`), `spec` is merged in."""
    body: dict[str, Any] = {
        "model": {"path": "base/tiny"},
        "dataset": {"path": dataset} if isinstance(dataset, str) else dataset,
        "volume": {"claimName": CLAIM},
        "resources": {"gpus": 0, "cpu": "100m", "memory": "256Mi"},
        "retries": 1,
    }
    if stand_in:
        body["tracking"] = {"experimentName": f"stand-in:{stand_in}"}
    for key, value in spec.items():
        both = isinstance(value, dict) and isinstance(body.get(key), dict)
        body[key] = {**body[key], **value} if both else value
    return {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {"name": name},
        "spec": body,
    }


def pod(name: str, image: str, command: list[str], *, claim: str | None = CLAIM) -> dict[str, Any]:
    """A plain pod under the restricted profile with the claim at /workspace, for what tests do by hand."""
    mounts = [{"name": "workspace", "mountPath": "/workspace"}] if claim else []
    volumes = [{"name": "workspace", "persistentVolumeClaim": {"claimName": claim}}] if claim else []
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": SECURITY,
            "containers": [container],
            "volumes": volumes,
        },
    }


@dataclass(frozen=True)
class TuningNamespace:
    """What a test does in its namespace, through kubectl."""

    cluster: Any
    name: str

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Output of kubectl; raises CalledProcessError with what kubectl said."""
        return str(self.cluster.kubectl("-n", self.name, *arguments, input=input))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply all of `objects` at once."""
        self.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object, or None."""
        text = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return dict(json.loads(text)) if text.strip() else None

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind."""
        return list(
            json.loads(self.kubectl("get", kind, "-o", "json", *(["-l", selector] if selector else [])))["items"]
        )

    def conditions(self, name: str) -> dict[str, dict[str, Any]]:
        """Conditions of a TuningJob by type."""
        job = self.get("tuningjobs", name) or {}
        return {c["type"]: c for c in job.get("status", {}).get("conditions", [])}

    def wait(
        self, name: str, condition: str, *, status: str = "True", reason: str = "", seconds: float = 90
    ) -> dict[str, Any]:
        """The TuningJob once it has the condition; fails with all of its conditions."""

        def reached() -> bool:
            found = self.conditions(name).get(condition, {})
            return found.get("status") == status and reason in ("", found.get("reason"))

        wait_until(reached, seconds, lambda: f"{condition}={status} {reason} of {name}; has {self._shown(name)}")
        job = self.get("tuningjobs", name)
        assert job is not None
        return job

    def _shown(self, name: str) -> str:
        conditions = self.conditions(name).values()
        lines = [f"  {c['type']}={c['status']} {c['reason']}: {c['message']}" for c in conditions]
        pods = self.kubectl("get", "pods", "-o", "wide", "-l", f"tuning.llmtuning.dev/job={name}")
        return "\n".join(["", *lines, pods, *(f"  event {e['reason']}: {e['message']}" for e in self.events(name))])

    def events(self, name: str, kind: str = "TuningJob") -> list[dict[str, Any]]:
        """Events of one object."""
        selector = f"involvedObject.name={name},involvedObject.kind={kind}"
        return list(json.loads(self.kubectl("get", "events", "-o", "json", "--field-selector", selector))["items"])

    def run(self, name: str, image: str, *command: str, seconds: float = 60, claim: str = CLAIM) -> str:
        """Logs of a pod that ran `command` to its end with the claim mounted; the pod goes."""
        self.apply(pod(name, image, list(command), claim=claim))

        def phase() -> str:
            return str((self.get("pod", name) or {}).get("status", {}).get("phase"))

        wait_until(lambda: phase() in ("Succeeded", "Failed"), seconds, lambda: f"the end of pod {name}, is {phase()}")
        logs, ended = self.kubectl("logs", name), phase()
        self.kubectl("delete", "pod", name, "--wait=false")
        assert ended == "Succeeded", logs
        return logs


def wait_until(reached: Callable[[], bool], seconds: float, what: Callable[[], str] | str) -> None:
    """Wait for a condition of the cluster; fails after `seconds` with `what` was waited for."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.3)


@contextmanager
def tuning_namespace(
    cluster: Any,
    *,
    trainer: str = STAND_IN_IMAGE,
    operator: bool = True,
    values: dict[str, str] | None = None,
    images: Collection[str] = (),
) -> Iterator[TuningNamespace]:
    """A namespace under the restricted profile with a filled claim and, by helm, an operator of its own."""
    needed = {OPERATOR_IMAGE, STAND_IN_IMAGE, trainer} & OURS | set(images)
    load(cluster, *(image.rsplit("/", 1)[-1].split(":")[0] for image in needed))
    with cluster.namespace() as name:
        namespace = TuningNamespace(cluster, name)
        namespace.apply(claim(CLAIM))
        if operator:
            install(cluster, name, trainer=trainer, values=values or {})
        namespace.run("fill", STAND_IN_IMAGE, "python", "/opt/stand-in/fill_volume.py", "/workspace")
        yield namespace


def claim(name: str, *, storage_class: str | None = None) -> dict[str, Any]:
    """A claim of 1 Gi."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def install(cluster: Any, namespace: str, *, trainer: str, values: dict[str, str]) -> None:
    """helm install, and wait until the operator is ready."""
    sets = {"images.operator": OPERATOR_IMAGE, "images.trainer": trainer, "crds.enabled": "false", **values}
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    cluster.helm("install", "llm-tuning", str(CHART), "-n", namespace, *arguments, "--wait", "--timeout", "90s")
