"""Who may report for a TuningJob: only a pod of it, with a token that the cluster signed for it."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.support.cluster_tokens import ISSUER, Signer, published
from tuning_operator.core.audience import audience_of
from tuning_operator.core.errors import ClusterError
from tuning_operator.reports.tokens import ClusterKeys, Sender, TokenRefused, TokenVerifier, own_issuer

SIGNER = Signer()
EC_SIGNER = Signer(kid="key-ec", algorithm="ES256")
OURS = audience_of("team", "faq", "job-uid")


@dataclass
class Store:
    """TuningJob team/faq with one pod, and team/other with another."""

    jobs: dict[str, str] = field(default_factory=lambda: {"faq": "job-uid", "other": "other-uid"})
    pods: dict[str, list[tuple[str, str]]] = field(
        default_factory=lambda: {"job-uid": [("p", "p-uid")], "other-uid": [("q", "q-uid")]}
    )

    owners: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Owner references of pods, by name, that are others than a Job of the TuningJob."""

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if kind == "jobs" and name.endswith("-train"):
            uid = self.jobs.get(name.removesuffix("-train"))
            return uid and raw_object(name, f"{uid}-train", controller("TuningJob", "any", uid))
        uid = self.jobs.get(name) if namespace == "team" and kind == "tuningjobs" else None
        return uid and raw_object(name, uid)

    def pods_of(self, uid: str) -> Iterable[dict[str, Any]]:
        job = next((name for name, job_uid in self.jobs.items() if job_uid == uid), "")
        ours = controller("Job", f"{job}-train", f"{uid}-train")
        return [raw_object(name, pod_uid, self.owners.get(name, ours)) for name, pod_uid in self.pods.get(uid, [])]


def raw_object(name: str, uid: str, *owners: dict[str, Any]) -> dict[str, Any]:
    owned = {"ownerReferences": [owner for owner in owners if owner]}
    return {"metadata": {"namespace": "team", "name": name, "uid": uid, **owned}}


def controller(kind: str, name: str, uid: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "uid": uid, "controller": True}


@dataclass
class Jwks:
    """The published keys, how often they were read, and a clock."""

    signers: tuple[Signer, ...] = (SIGNER, EC_SIGNER)
    reads: int = 0
    fails: bool = False
    now: float = 1000.0

    async def read(self) -> dict[str, Any]:
        self.reads += 1
        if self.fails:
            raise ClusterError("down")
        return published(*self.signers)


@pytest.fixture
def jwks() -> Jwks:
    return Jwks()


@pytest.fixture
def verifier(jwks: Jwks) -> TokenVerifier:
    return TokenVerifier(ClusterKeys(jwks.read, clock=lambda: jwks.now), Store(), lambda: ISSUER)


@pytest.mark.parametrize("signer", [SIGNER, EC_SIGNER], ids=["RS256", "ES256"])
async def test_the_jobs_own_pod_is_known_by_its_token(verifier: TokenVerifier, signer: Signer) -> None:
    assert await verifier.verify(signer.token(OURS), "team", "faq") == Sender("p", "p-uid")


def forged_without_signature() -> str:
    return jwt.encode({"aud": OURS, "iss": ISSUER, "exp": 2**33}, None, algorithm="none", headers={"kid": "key-1"})


def forged_with_the_public_key_as_secret() -> str:
    """The classic: HS256, keyed with what everybody knows."""
    secret = str(SIGNER.jwk()["n"])
    return jwt.encode({"aud": OURS, "iss": ISSUER, "exp": 2**33}, secret, algorithm="HS256", headers={"kid": "key-1"})


def with_other_claims() -> str:
    """A true signature under claims that it was not made for."""
    head, _, signature = SIGNER.token("another").split(".")
    _, body, _ = SIGNER.token(OURS).split(".")
    return ".".join((head, body, signature))


NOW = int(time.time())
OTHERS = audience_of("team", "other", "other-uid")


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [
        ("", 401, "not a signed token"),
        ("nonsense", 401, "not a signed token"),
        ("a.b.c", 401, "not a signed token"),
        (base64.urlsafe_b64encode(b"[]").decode() + ".e30.x", 401, "not a signed token"),
        (Signer(kid="key-9").token(OURS), 401, "not signed by a key of this cluster"),
        (Signer().token(OURS), 401, "signature is wrong"),
        (with_other_claims(), 401, "signature is wrong"),
        (forged_without_signature(), 401, "not valid"),
        (forged_with_the_public_key_as_secret(), 401, "not valid"),
        (SIGNER.token(OURS, exp=NOW - 60), 401, "has expired"),
        (SIGNER.token(OURS, exp=None), 401, "not valid"),
        (SIGNER.token(OURS, nbf=NOW + 600), 401, "not valid"),
        (SIGNER.token(OURS, iss="https://another.example"), 401, "not of this cluster's issuer"),
        (SIGNER.token(OURS, iss=None), 401, "not valid"),
        (SIGNER.token(ISSUER), 403, "audience"),
        (SIGNER.token(OTHERS, pod=("q", "q-uid")), 403, "audience"),
        (SIGNER.token(audience_of("team", "faq", "older-uid")), 403, "audience"),
        (SIGNER.token(OURS, aud=[OURS, ISSUER]), 403, "audience"),
        (SIGNER.token(OURS, aud=[]), 403, "audience"),
        (SIGNER.token(OURS, aud=None), 401, "not valid"),
        (SIGNER.token(OURS, pod=None), 403, "not bound to a pod"),
        (SIGNER.token(OURS, **{"kubernetes.io": None}), 403, "not bound to a pod"),
        (SIGNER.token(OURS, **{"kubernetes.io": "team"}), 403, "not bound to a pod"),
        (SIGNER.token(OURS, **{"kubernetes.io": {"pod": {"name": "p", "uid": "p-uid"}}}), 403, "not of namespace team"),
        (SIGNER.token(OURS, pod=("q", "q-uid")), 403, "not among those"),
        (SIGNER.token(OURS, pod=("p", "older-uid")), 403, "not among those"),
        (SIGNER.token(OURS, pod=("q", "p-uid")), 403, "not among those"),
    ],
)
async def test_what_is_refused(verifier: TokenVerifier, token: str, status: int, reason: str) -> None:
    with pytest.raises(TokenRefused, match=reason) as refused:
        await verifier.verify(token, "team", "faq")
    assert refused.value.status == status


@pytest.mark.parametrize(
    "owner",
    [
        {},
        controller("Job", "other-train", "other-uid-train"),
        controller("Job", "faq-train", "older-uid-train"),
        controller("Job", "mine", "mine-uid"),
        controller("ReplicaSet", "faq-train", "job-uid-train"),
        controller("TuningJob", "faq", "job-uid"),
        controller("Job", "faq-train", "job-uid-train") | {"controller": False},
    ],
)
async def test_a_pod_with_the_labels_that_no_job_of_the_object_owns_is_refused(
    jwks: Jwks, owner: dict[str, Any]
) -> None:
    verifier = TokenVerifier(ClusterKeys(jwks.read), Store(owners={"p": owner}), lambda: ISSUER)
    with pytest.raises(TokenRefused, match="not among those"):
        await verifier.verify(SIGNER.token(OURS), "team", "faq")


async def test_a_job_that_is_not_there_is_answered_like_one_of_others(verifier: TokenVerifier) -> None:
    token = SIGNER.token(OURS)
    for namespace, name in (("team", "nobody"), ("elsewhere", "faq"), ("team", "other")):
        with pytest.raises(TokenRefused) as refused:
            await verifier.verify(token, namespace, name)
        assert str(refused.value) == f"the token's audience is not TuningJob {namespace}/{name}"
        assert refused.value.status == 403


async def test_keys_are_read_once(verifier: TokenVerifier, jwks: Jwks) -> None:
    for _ in range(5):
        await verifier.verify(SIGNER.token(OURS), "team", "faq")
    assert jwks.reads == 1


async def test_a_new_key_is_found_and_made_up_ones_cost_one_read_in_30_seconds(
    verifier: TokenVerifier, jwks: Jwks
) -> None:
    await verifier.verify(SIGNER.token(OURS), "team", "faq")
    rotated = Signer(kid="key-2")
    jwks.signers = (SIGNER, rotated)
    for _ in range(20):
        with pytest.raises(TokenRefused):
            await verifier.verify(Signer(kid="made-up", algorithm="ES256").token(OURS), "team", "faq")
    assert jwks.reads == 1
    jwks.now += 31
    assert await verifier.verify(rotated.token(OURS), "team", "faq") == Sender("p", "p-uid")
    assert jwks.reads == 2


async def test_a_withdrawn_key_is_forgotten_within_the_hour(verifier: TokenVerifier, jwks: Jwks) -> None:
    await verifier.verify(SIGNER.token(OURS), "team", "faq")
    jwks.signers = (EC_SIGNER,)
    jwks.now += 3601
    with pytest.raises(TokenRefused, match="not signed by a key of this cluster"):
        await verifier.verify(SIGNER.token(OURS), "team", "faq")


async def test_while_the_cluster_is_down_known_keys_are_kept(verifier: TokenVerifier, jwks: Jwks) -> None:
    jwks.fails = True
    with pytest.raises(TokenRefused) as refused:
        await verifier.verify(SIGNER.token(OURS), "team", "faq")
    assert refused.value.status == 503
    jwks.fails, jwks.now = False, jwks.now + 31
    await verifier.verify(SIGNER.token(OURS), "team", "faq")
    jwks.fails, jwks.now = True, jwks.now + 4000
    await verifier.verify(SIGNER.token(OURS), "team", "faq")


async def test_a_key_of_an_unknown_kind_does_not_hide_the_others() -> None:
    async def read() -> dict[str, Any]:
        secret = {"kty": "oct", "kid": "secret", "k": "c2VjcmV0", "alg": "HS256"}
        return {"keys": [{"kty": "new"}, {}, "text", secret, *published(SIGNER)["keys"]]}

    keys = ClusterKeys(read)
    assert await keys.key("key-1") is not None
    assert await keys.key("secret") is None


async def test_no_part_of_a_token_is_logged_or_said(verifier: TokenVerifier, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for token in (SIGNER.token("another"), Signer().token(OURS), "canary.canary.canary"):
        with pytest.raises(TokenRefused) as refused:
            await verifier.verify(token, "team", "faq")
        said = str(refused.value) + caplog.text
        assert not any(part in said for part in token.split("."))


def test_the_issuer_is_that_of_the_operators_own_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert own_issuer(file) is None
    file.write_text("nonsense")
    assert own_issuer(file) is None
    file.write_text(SIGNER.token("https://kubernetes.default.svc", exp=NOW - 60) + "\n")
    assert own_issuer(file) == ISSUER


async def test_outside_of_a_pod_the_clusters_keys_alone_tell(jwks: Jwks) -> None:
    verifier = TokenVerifier(ClusterKeys(jwks.read), Store(), lambda: None)
    assert await verifier.verify(SIGNER.token(OURS), "team", "faq") == Sender("p", "p-uid")
    with pytest.raises(TokenRefused):
        await verifier.verify(Signer().token(OURS), "team", "faq")
