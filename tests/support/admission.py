"""What an admission webhook of a stranger's cluster does to pods, by a policy of the API server's own."""

from __future__ import annotations

from typing import Any

API = "admissionregistration.k8s.io/v1"


def mutating_policy(name: str, namespace: str, *, labels: dict[str, str], change: str) -> list[dict[str, Any]]:
    """A policy and its binding: pods with these labels are made with `change`, an expression in CEL."""
    policy = {
        "apiVersion": API,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
                "objectSelector": {"matchLabels": labels},
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ],
            },
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": change}}],
        },
    }
    binding = {
        "apiVersion": API,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name},
    }
    return [policy, binding]
