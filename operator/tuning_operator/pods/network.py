"""NetworkPolicies of the pods that fetch, and of those that must not: a cluster's network plugin enforces them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tuning_operator.core.constants import HASH_ANNOTATION
from tuning_operator.core.settings import Settings

DNS: dict[str, Any] = {
    "ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]
}
"""A policy sees the port of the pod behind the Service: 53, and 5353 on OpenShift."""
METADATA_SERVICES = {"0.0.0.0/0": ["169.254.0.0/16"], "::/0": ["fe80::/10", "fd00:ec2::254/128"]}
"""Everywhere but a cloud's metadata services, which give out the node's own credentials."""
IN_CLUSTER = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+\.svc(\.[a-z0-9.-]+)?)?")
"""A name that only a Service has: mlflow, mlflow.mlops.svc, mlflow.mlops.svc.cluster.local. With one dot it may be a
Service in a namespace, mlflow.mlops, or a host outside, mlflow.corp: such a name is taken for either."""


def online(selector: Mapping[str, Any]) -> dict[str, Any]:
    """Build the spec for pods that fetch: out to everywhere but metadata services, in from nowhere.

    No port is named: a hub, a store or a proxy may listen on any.
    """
    blocks = [{"ipBlock": {"cidr": cidr, "except": but}} for cidr, but in METADATA_SERVICES.items()]
    return _spec(selector, [DNS, {"to": [{"namespaceSelector": {}}, *blocks]}])


def offline(selector: Mapping[str, Any], settings: Settings, tracking_uri: str | None) -> dict[str, Any]:
    """Build the spec for pods that work on what was fetched: out to DNS, the operator and MLflow, in from nowhere.

    MLflow's clients send artifacts to its server or straight to a store beside it: for a server in the cluster that is
    the cluster, for one outside it the server's port and https. A name of outside may lead back to an ingress in the
    cluster, whose pods listen on ports of their own: so the cluster is open then, too.
    """
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}}}
    out = [DNS, {"to": [operator], "ports": [_port(settings.progress_port)]}]
    if tracking_uri is not None:
        out += _to_tracking(tracking_uri)
    return _spec(selector, out)


def together(selector: Mapping[str, Any], settings: Settings, tracking_uri: str | None) -> dict[str, Any]:
    """Build the spec for pods that work together: as `offline`, and each other at every port, in and out."""
    alone, peers = offline(selector, settings, tracking_uri), {"podSelector": dict(selector)}
    return alone | {"ingress": [{"from": [peers]}], "egress": [*alone["egress"], {"to": [peers]}]}


def _to_tracking(uri: str) -> list[dict[str, Any]]:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return []
    cluster: dict[str, Any] = {"to": [{"namespaceSelector": {}}]}
    if IN_CLUSTER.fullmatch(host):
        return [cluster]
    ports = sorted({port or (80 if parts.scheme == "http" else 443), 443})
    return [cluster, {"ports": [_port(number) for number in ports]}]


def _port(number: int) -> dict[str, Any]:
    return {"port": number, "protocol": "TCP"}


def _spec(selector: Mapping[str, Any], egress: list[dict[str, Any]]) -> dict[str, Any]:
    return {"podSelector": dict(selector), "policyTypes": ["Ingress", "Egress"], "ingress": [], "egress": egress}


def build_policy(
    name: str, namespace: str, labels: Mapping[str, str], owner: Mapping[str, Any], spec: Mapping[str, Any]
) -> dict[str, Any]:
    """Build the NetworkPolicy with a digest of itself, so that it is applied once."""
    metadata = _metadata(name, namespace, labels, owner, spec)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": dict(spec),
    }


def build_headless_service(
    name: str,
    namespace: str,
    labels: Mapping[str, str],
    owner: Mapping[str, Any],
    *,
    ports: Mapping[str, int],
    pods: Mapping[str, str],
) -> dict[str, Any]:
    """Build the Service that gives each of the pods (by their labels) a name: it has that while its container runs."""
    listed = [{"name": word, "port": port, "protocol": "TCP", "appProtocol": "tcp"} for word, port in ports.items()]
    spec = {"clusterIP": "None", "selector": dict(pods), "ports": listed}
    metadata = _metadata(name, namespace, labels, owner, spec)
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _metadata(
    name: str, namespace: str, labels: Mapping[str, str], owner: Mapping[str, Any], spec: Mapping[str, Any]
) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
    return {
        "name": name,
        "namespace": namespace,
        "labels": dict(labels),
        "annotations": {HASH_ANNOTATION: digest},
        "ownerReferences": [dict(owner)],
    }
