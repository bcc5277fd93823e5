"""What the operator may do and what not, asked of the API server for the account that the chart makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from devcluster.cluster import Clients

OPERATOR = "llm-tuning-operator"
TLS = "llm-tuning-operator-tls"
CHAIN = [
    ("watch", "tuning.llmtuning.dev/tuningjobs"),
    ("patch", "tuning.llmtuning.dev/tuningjobs//status"),
    ("create", "batch/jobs"),
    ("delete", "batch/jobs"),
    ("watch", "/pods"),
    ("create", "/events"),
    ("patch", "apps/deployments"),
]
"""Verb and resource, as `may` has it: in each watched namespace."""
OWN = [("get", f"/secrets/{TLS}"), ("update", f"coordination.k8s.io/leases/{OPERATOR}")]
"""In the operator's own namespace."""
DENIED = [
    ("list", "/secrets"),
    ("get", "/secrets"),
    ("get", "/secrets/llm-tuning-credentials"),
    ("delete", f"/secrets/{TLS}"),
    ("delete", "/configmaps"),
    ("delete", "apps/deployments"),
    ("update", "tuning.llmtuning.dev/inferenceservices"),
    ("delete", "tuning.llmtuning.dev/inferenceservices"),
    ("get", "/persistentvolumeclaims"),
    ("create", "/pods"),
    ("delete", "/pods"),
    ("get", "/pods//log"),
    ("create", "/pods//exec"),
    ("update", "batch/jobs"),
    ("patch", "batch/jobs"),
    ("update", "tuning.llmtuning.dev/tuningjobs"),
    ("patch", "tuning.llmtuning.dev/tuningjobs"),
    ("create", "tuning.llmtuning.dev/tuningjobs"),
    ("update", "coordination.k8s.io/leases/another"),
    ("create", "/serviceaccounts//token"),
    ("create", "rbac.authorization.k8s.io/roles"),
    ("impersonate", "/serviceaccounts"),
    ("list", "/nodes"),
    ("list", "/namespaces"),
    ("get", "apiextensions.k8s.io/customresourcedefinitions"),
    ("create", "authentication.k8s.io/tokenreviews"),
]
"""Nowhere, whatever is watched."""


Asked = tuple[str, str, str]
"""Verb, resource and namespace; a resource is group/kind/name/subresource, each may be empty."""


def may(cluster: Clients, home: str, verb: str, resource: str, *, namespace: str) -> bool:
    """Whether the operator of namespace `home` may."""
    return may_each(cluster, home, [(verb, resource, namespace)])[verb, resource, namespace]


def may_each(cluster: Clients, home: str, asked: Sequence[Asked], *, account: str = OPERATOR) -> dict[Asked, bool]:
    """Whether the operator of namespace `home`, or another account of it, may, by what is asked, in one call."""
    reviews = {"apiVersion": "v1", "kind": "List", "items": [_review(home, account, *one) for one in asked]}
    answers = cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(reviews))
    allowed, decoder = [], json.JSONDecoder()
    while answers := answers.strip():  # one document after the other, in the order of the items
        answer, end = decoder.raw_decode(answers)
        allowed.append(bool(answer["status"]["allowed"]))
        answers = answers[end:]
    return dict(zip(asked, allowed, strict=True))


def _review(home: str, account: str, verb: str, resource: str, namespace: str) -> dict[str, Any]:
    group, kind, name, subresource = f"{resource}///".split("/")[:4]
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": kind}
    return {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{home}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{home}", "system:authenticated"],
            "resourceAttributes": attributes | {"name": name, "subresource": subresource},
        },
    }
