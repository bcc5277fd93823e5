"""The progress endpoint as pods reach it: which tokens of the real API server may report for a TuningJob.

That a trainer reports, by a token of its own, is seen in tests/cluster/test_network_policies.py, too.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest

from devcluster.cluster import Cluster, state_dir
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


def test_a_post_without_a_token_is_refused(endpoint: Endpoint) -> None:
    assert endpoint.post("") == (401, "a bearer token is required")


def test_a_token_of_our_audience_in_another_jobs_pod_is_refused(endpoint: Endpoint) -> None:
    status, message = endpoint.post(endpoint.token(endpoint.ours, of=endpoint.other))
    assert (status, "not among those" in message) == (403, True)


def test_a_token_of_no_pod_is_refused(endpoint: Endpoint) -> None:
    status, message = endpoint.post(endpoint.token(endpoint.ours, of=None))
    assert (status, "not bound to a pod" in message) == (403, True)


@pytest.mark.parametrize("audience", ["https://kubernetes.default.svc.cluster.local", "another"])
def test_a_token_of_another_audience_is_refused(endpoint: Endpoint, audience: str) -> None:
    token = endpoint.token(endpoint.ours, of=endpoint.ours, audience=audience)
    status, message = endpoint.post(token)
    assert (status, "audience" in message) == (403, True)


def test_a_token_for_a_namesake_that_is_gone_is_refused(endpoint: Endpoint) -> None:
    older = audience_of(endpoint.space.name, "ours", "00000000-0000-0000-0000-000000000000")
    assert endpoint.post(endpoint.token(endpoint.ours, of=endpoint.ours, audience=older))[0] == 403


def test_a_forged_token_is_refused(endpoint: Endpoint) -> None:
    head, body, signature = endpoint.token(endpoint.ours, of=endpoint.ours).split(".")
    swapped = signature[:-8] + ("AAAAAAAA" if signature[-8:] != "AAAAAAAA" else "BBBBBBBB")
    assert endpoint.post(f"{head}.{body}.{swapped}") == (401, "the token's signature is wrong")
    claims = jwt.decode(f"{head}.{body}.{signature}", options={"verify_signature": False})
    header = jwt.get_unverified_header(f"{head}.{body}.{signature}")
    ours = jwt.encode(
        claims, "a secret of somebody else, long enough", algorithm="HS256", headers={"kid": header["kid"]}
    )
    assert endpoint.post(ours)[0] == 401
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": header["kid"]})
    assert endpoint.post(unsigned)[0] == 401


def test_an_expired_token_is_refused(cluster: Any, endpoint: Endpoint) -> None:
    """Signed as the API server does: it makes none of less than ten minutes."""
    if not isinstance(cluster, Cluster):
        pytest.skip("needs the key that signs tokens, which a devcluster keeps in a file")
    token = endpoint.token(endpoint.ours, of=endpoint.ours)
    claims = jwt.decode(token, options={"verify_signature": False})
    header = jwt.get_unverified_header(token)
    key = (state_dir(cluster.name) / "certificates" / "sa.key").read_text()

    def signed(expires: float) -> str:
        return jwt.encode(claims | {"exp": int(expires)}, key, algorithm=header["alg"], headers={"kid": header["kid"]})

    assert endpoint.post(signed(time.time() + 60)) == (200, "")
    assert endpoint.post(signed(time.time() - 60)) == (401, "the token has expired")


def test_a_wrong_body_is_refused_and_named(endpoint: Endpoint) -> None:
    token = endpoint.token(endpoint.ours, of=endpoint.ours)
    status, message = endpoint.post(token, body={"trainerStatus": {"progressPercentage": 101}})
    assert (status, message.startswith("trainerStatus.progressPercentage")) == (400, True)
    assert endpoint.post(token, body={"trainerStatus": {"note": "x" * 70_000}})[0] == 413


def test_no_token_is_in_the_operators_log(endpoint: Endpoint) -> None:
    token = endpoint.token(endpoint.ours, of=endpoint.other)
    endpoint.post(token)
    log = endpoint.space.kubectl("logs", "deployment/llm-tuning-operator")
    assert not any(part in log for part in token.split("."))


def test_the_token_of_a_pod_that_is_gone_is_refused(endpoint: Endpoint) -> None:
    token = endpoint.token(endpoint.other, of=endpoint.other)
    endpoint.space.kubectl("delete", "tuningjob", "other", "--wait")
    deadline = time.monotonic() + 30
    while (answer := endpoint.post(token, name="other"))[0] == 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert answer[0] == 403
