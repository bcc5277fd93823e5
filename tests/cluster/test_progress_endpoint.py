"""The progress endpoint as pods reach it: which tokens of the real API server may report for a TuningJob."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.tuning_namespace import (
    OPERATOR_IMAGE,
    TuningNamespace,
    pod,
    tuning_job,
    tuning_namespace,
    wait_until,
)
from tuning_operator.core.audience import audience_of

CLIENT = "client"
POST = """
import json, ssl, sys, urllib.error, urllib.request
order = json.load(sys.stdin)
headers = {"Authorization": "Bearer " + order["token"]} if order["token"] else {}
request = urllib.request.Request(order["url"], json.dumps(order["body"]).encode(), headers)
try:
    answer = urllib.request.urlopen(request, timeout=5, context=ssl.create_default_context(cadata=order["ca"]))
    print(json.dumps([answer.status, ""]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, json.load(error)["message"]]))
"""
BODY = {"trainerStatus": {"progressPercentage": 42, "metrics": [{"name": "loss", "value": "1.25"}]}}


@dataclass(frozen=True)
class Training:
    """A TuningJob whose trainer runs."""

    name: str
    uid: str
    pod: str
    pod_uid: str


@dataclass(frozen=True)
class Endpoint:
    """Posts from a pod of the namespace, and makes tokens as an administrator."""

    space: TuningNamespace
    ca: str
    ours: Training
    other: Training

    def post(self, token: str, *, name: str = "", body: Any = BODY) -> tuple[int, str]:
        url = f"https://llm-tuning-operator.{self.space.name}.svc:8443"
        order = {
            "url": f"{url}/v1/namespaces/{self.space.name}/tuningjobs/{name or self.ours.name}/status",
            "ca": self.ca,
            "token": token,
            "body": body,
        }
        out = self.space.kubectl("exec", "-i", CLIENT, "--", "python", "-c", POST, input=json.dumps(order))
        status, message = json.loads(out)
        return status, message

    def token(self, job: Training, *, of: Training | None, audience: str = "") -> str:
        """A token for the audience of `job`, bound to the pod of `of` as the kubelet binds it."""
        bound: list[str] = []
        if of is not None:
            bound = ["--bound-object-kind=Pod", f"--bound-object-name={of.pod}", f"--bound-object-uid={of.pod_uid}"]
        wanted = audience or audience_of(self.space.name, job.name, job.uid)
        return self.space.kubectl("create", "token", "default", f"--audience={wanted}", *bound).strip()


def start(space: TuningNamespace, name: str) -> Training:
    """Apply a TuningJob that trains until it is told to end."""
    space.apply(tuning_job(name, stand_in="sleep=600"))
    selector = f"tuning.llmtuning.dev/job={name},tuning.llmtuning.dev/role=train"

    def running() -> list[dict[str, Any]]:
        return [each for each in space.list("pods", selector) if each["status"].get("phase") == "Running"]

    wait_until(lambda: bool(running()), 90, f"the trainer of {name}")
    [trainer] = running()
    job = space.get("tuningjobs", name)
    assert job is not None
    return Training(name, job["metadata"]["uid"], trainer["metadata"]["name"], trainer["metadata"]["uid"])


@pytest.fixture(scope="module")
def endpoint(cluster: Any) -> Iterator[Endpoint]:
    with tuning_namespace(cluster) as space:
        space.apply(pod(CLIENT, OPERATOR_IMAGE, ["sleep", "infinity"], claim=None))
        ours, other = start(space, "ours"), start(space, "other")
        space.kubectl("wait", "--for=condition=Ready", f"pod/{CLIENT}", "--timeout=60s")
        secret = space.get("secret", "llm-tuning-operator-tls")
        assert secret is not None
        yield Endpoint(space, base64.b64decode(secret["data"]["ca.crt"]).decode(), ours, other)


def test_the_trainer_itself_reports_to_the_status(endpoint: Endpoint) -> None:
    def progress() -> dict[str, Any]:
        return ((endpoint.space.get("tuningjobs", "ours") or {}).get("status") or {}).get("progress") or {}

    wait_until(lambda: progress().get("step", 0) > 0, 30, "progress in the status")
    assert progress()["lastUpdateTime"]


def test_the_token_of_the_jobs_own_pod_is_accepted(endpoint: Endpoint) -> None:
    assert endpoint.post(endpoint.token(endpoint.ours, of=endpoint.ours)) == (200, "")


def test_another_jobs_token_is_refused(endpoint: Endpoint) -> None:
    theirs = endpoint.token(endpoint.other, of=endpoint.other)
    assert endpoint.post(theirs, name="other")[0] == 200
    status, message = endpoint.post(theirs, name="ours")
    assert (status, "audience" in message) == (403, True)
