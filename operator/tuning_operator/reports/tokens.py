"""Whether a bearer token is that of a pod of one TuningJob or InferenceService, verified without asking the API server.

A projected token is signed by the cluster, whose public keys every service account may read. TokenReview would need a
cluster-wide permission and a request each time; what it adds, that the pod still exists, the watched pods show.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jwt

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.errors import TuningError
from tuning_operator.core.audience import FETCH_OF_SERVICE, audience_of
from tuning_operator.core.cache import DEPLOYMENTS, INFERENCE_SERVICES, JOBS, TUNING_JOBS
from tuning_operator.core.errors import ClusterError

log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "ES256", "ES384", "ES512")
"""What a Kubernetes API server signs with; never a shared secret, never `none`."""
KEYS_MAX_AGE_SECONDS = 3600.0
"""A key that the cluster withdrew is trusted at most this long."""
KEYS_RETRY_SECONDS = 30.0
"""Tokens with made-up key ids must not become requests to the API server."""
SINGULAR = {TUNING_JOBS: tuning_job.KIND, INFERENCE_SERVICES: inference_service.KIND}
OWN_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
CLOCK_SKEW_SECONDS = 10.0
"""Between the API server's clock and ours."""


class TokenRefused(TuningError, PermissionError):  # noqa: N818 - an answer, not a fault
    """The token does not allow it. `status` is the HTTP status; the message never holds any of the token."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class WatchedPods(Protocol):
    """What the operator watches."""

    def get(self, kind: str, namespace: str, name: str) -> Mapping[str, Any] | None: ...
    def pods_of(self, uid: str) -> Iterable[Mapping[str, Any]]: ...


@dataclass
class ClusterKeys:
    """The cluster's published keys by id, read when first needed, when an unknown id comes, and once an hour."""

    read_jwks: Callable[[], Awaitable[Mapping[str, Any]]]
    clock: Callable[[], float] = time.monotonic
    _keys: dict[str, jwt.PyJWK] = field(default_factory=dict)
    _read_at: float | None = None
    _tried_at: float | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """Return the key, or None if the cluster publishes no such one; TokenRefused(503) while keys are unreadable."""
        async with self._lock:
            if (kid not in self._keys or self._are_older_than(KEYS_MAX_AGE_SECONDS)) and self._may_try():
                await self._read()
            if self._read_at is None:
                raise TokenRefused(503, "the cluster's keys for tokens cannot be read yet")
            return self._keys.get(kid)

    def _are_older_than(self, seconds: float) -> bool:
        return self._read_at is None or self.clock() - self._read_at > seconds

    def _may_try(self) -> bool:
        return self._tried_at is None or self.clock() - self._tried_at >= KEYS_RETRY_SECONDS

    async def _read(self) -> None:
        self._tried_at = self.clock()
        try:
            published = await self.read_jwks()
        except ClusterError as error:
            log.warning(
                "the cluster's keys for tokens cannot be read; next try in %.0f s: %s", KEYS_RETRY_SECONDS, error
            )
            return
        self._keys = dict(_usable_keys(published))
        self._read_at = self.clock()


def _usable_keys(published: Mapping[str, Any]) -> Iterable[tuple[str, jwt.PyJWK]]:
    for entry in published.get("keys", []):
        try:
            key = jwt.PyJWK.from_dict(entry)
        except (jwt.PyJWTError, AttributeError, TypeError, ValueError):
            continue  # of a kind that we do not know
        if key.key_id and key.algorithm_name in ALGORITHMS:
            yield key.key_id, key


def own_issuer(token_file: Path = OWN_TOKEN) -> str | None:
    """Return the cluster's issuer by the operator's own token; None outside of a pod, where the keys alone decide."""
    try:
        claims = jwt.decode(token_file.read_text().strip(), options={"verify_signature": False})
    except (OSError, jwt.PyJWTError):
        return None
    issuer = claims.get("iss")
    return issuer if isinstance(issuer, str) else None


@dataclass(frozen=True)
class Sender:
    """Who sent the request."""

    name: str
    uid: str


@dataclass
class TokenVerifier:
    """Finds the pod that a token belongs to, if that pod may report for the object."""

    keys: ClusterKeys
    cache: WatchedPods
    issuer: Callable[[], str | None] = own_issuer
    """Read each time: a cluster may change its issuer."""

    async def verify(
        self, token: str, namespace: str, name: str, kind: str = TUNING_JOBS, *, fetches: bool = False
    ) -> Sender:
        """Return the pod that sent it; `fetches`: the one that fetches for an InferenceService, and no agent.

        TokenRefused: 401 if not a valid token of this cluster, 403 if for another.
        """
        claims = await self._signed_claims(token)
        owner = self.cache.get(kind, namespace, name)
        uid = "" if owner is None else str(owner["metadata"]["uid"])
        shown = f"{SINGULAR[kind]} {namespace}/{name}"
        # The same answer whether or not it exists: a token of another one does not learn it.
        what = FETCH_OF_SERVICE if fetches else SINGULAR[kind].lower()
        if owner is None or _audiences(claims) != [audience_of(namespace, name, uid, what)]:
            raise TokenRefused(403, f"the token's audience is not {shown}")
        bound = claims.get("kubernetes.io")
        bound = bound if isinstance(bound, dict) else {}
        pod = bound.get("pod")
        if not isinstance(pod, dict):
            raise TokenRefused(403, "the token is not bound to a pod")
        if bound.get("namespace") != namespace:
            raise TokenRefused(403, f"the token is not of namespace {namespace}")
        sender = Sender(str(pod.get("name")), str(pod.get("uid")))
        through = JOBS if fetches or kind == TUNING_JOBS else DEPLOYMENTS
        known = {
            Sender(pod["metadata"]["name"], pod["metadata"]["uid"])
            for pod in self.cache.pods_of(uid)
            if self._is_descendant(pod, through, namespace, name, uid)
        }
        if sender not in known:
            raise TokenRefused(403, f"the token's pod is not among those of {shown}")
        return sender

    def _is_descendant(self, pod: Mapping[str, Any], through: str, namespace: str, name: str, uid: str) -> bool:
        """Return whether the pod is of a Job of the object, or of a ReplicaSet of its Deployment.

        Whoever may create pods may set such labels. ReplicaSets are not watched; their names have the Deployment's.
        """
        controller = _controller_of(pod)
        if through == DEPLOYMENTS:
            deployment = self.cache.get(DEPLOYMENTS, namespace, name)
            is_ours = deployment is not None and _controller_of(deployment).get("uid") == uid
            return is_ours and _is_replica_set_of(controller, name)
        job = self.cache.get(JOBS, namespace, str(controller.get("name")))
        if controller.get("kind") != "Job" or job is None or job["metadata"].get("uid") != controller.get("uid"):
            return False
        return _controller_of(job).get("uid") == uid

    async def _signed_claims(self, token: str) -> dict[str, Any]:
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise TokenRefused(401, "the bearer token is not a signed token") from None
        key = await self.keys.key(kid) if isinstance(kid, str) else None
        if key is None:
            raise TokenRefused(401, "the token is not signed by a key of this cluster")
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                issuer=self.issuer(),
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "iss", "aud"], "verify_aud": False},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused(401, "the token has expired") from None
        except jwt.InvalidIssuerError:
            raise TokenRefused(401, "the token is not of this cluster's issuer") from None
        except jwt.InvalidSignatureError:
            raise TokenRefused(401, "the token's signature is wrong") from None
        except jwt.PyJWTError:
            raise TokenRefused(401, "the token is not valid") from None


def _controller_of(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the owner reference of an object's controller; {} without one."""
    owners = raw["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), {})


def _is_replica_set_of(owner: Mapping[str, Any], deployment: str) -> bool:
    """Judge by the ReplicaSet's name: the Deployment's, and a hash of the pod template."""
    return owner.get("kind") == "ReplicaSet" and str(owner.get("name")).rpartition("-")[0] == deployment


def _audiences(claims: Mapping[str, Any]) -> list[Any]:
    audience = claims.get("aud")
    return audience if isinstance(audience, list) else [audience]
