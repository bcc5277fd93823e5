"""Service-account tokens as a Kubernetes API server issues them for pods, and the keys that it publishes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER = "https://kubernetes.default.svc.cluster.local"


@dataclass
class Signer:
    """One cluster's signing key."""

    kid: str = "key-1"
    algorithm: str = "RS256"
    key: Any = field(init=False)

    def __post_init__(self) -> None:
        rsa_like = self.algorithm == "RS256"
        self.key = rsa.generate_private_key(65537, 2048) if rsa_like else ec.generate_private_key(ec.SECP256R1())

    def jwk(self) -> dict[str, Any]:
        to_jwk = RSAAlgorithm.to_jwk if self.algorithm == "RS256" else ECAlgorithm.to_jwk
        return to_jwk(self.key.public_key(), as_dict=True) | {"use": "sig", "kid": self.kid, "alg": self.algorithm}

    def token(self, audience: str, *, pod: tuple[str, str] | None = ("p", "p-uid"), **claims: Any) -> str:
        now = int(time.time())
        bound: dict[str, Any] = {
            "namespace": "team",
            "serviceaccount": {"name": "default", "uid": "sa-uid"},
        }
        if pod is not None:
            bound["pod"] = {"name": pod[0], "uid": pod[1]}
        body = {
            "aud": [audience],
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "kubernetes.io": bound,
            "sub": "system:serviceaccount:team:default",
        } | claims
        return jwt.encode(
            {name: value for name, value in body.items() if value is not None},
            self.key,
            algorithm=self.algorithm,
            headers={"kid": self.kid},
        )


def published(*signers: Signer) -> dict[str, Any]:
    """What /openid/v1/jwks answers."""
    return {"keys": [signer.jwk() for signer in signers]}
