"""Whose reports the operator takes, with tokens of a real Kubernetes."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from devcluster.cluster import Cluster, state_dir
from tests.cluster.test_progress_endpoint import Endpoint, endpoint
from tuning_operator.core.audience import audience_of

__all__ = ["endpoint"]  # fixtures of the tests below


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
