"""What all pods of the operator share: owner, placement, and the restricted profile."""

from __future__ import annotations

import math
from typing import Any

from llm_tuning.api.kube import API_VERSION, PlacementSpec
from llm_tuning.api.quantity import parse_quantity
from tuning_operator.core.resource import CustomResource
from tuning_operator.core.settings import Settings

USER = 65532
RESTRICTED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""A container's part of the restricted profile."""


def owner_reference(observed: CustomResource, kind: str) -> dict[str, Any]:
    """Build the owner reference with which an object is deleted together with its custom resource."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": observed.name,
        "uid": observed.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def pod_security(settings: Settings) -> dict[str, Any]:
    """Build a pod's part of the restricted Pod Security profile."""
    user = {} if settings.cluster_assigns_user else {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    return {
        "runAsNonRoot": True,
        **user,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def placement(asked: PlacementSpec, settings: Settings) -> dict[str, Any]:
    """Build the placement, alike for every role, so that the check binds the claim where the GPUs are.

    The RuntimeClass is no part of it: NVIDIA's runtime could show all GPUs of the node to a pod that asks for none.
    """
    fields: dict[str, Any] = {}
    if asked.node_selector:
        fields["nodeSelector"] = dict(asked.node_selector)
    if asked.tolerations:
        fields["tolerations"] = [t.model_dump(by_alias=True, exclude_none=True) for t in asked.tolerations]
    if asked.priority_class_name:
        fields["priorityClassName"] = asked.priority_class_name
    if settings.image_pull_secrets:
        fields["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return fields


def threads(cpu: str) -> int:
    """Return the whole threads of a CPU quantity: `500m` -> 1, `2` -> 2, `2.5` -> 3."""
    return max(1, math.ceil(parse_quantity(cpu)))


def small_resources(cpu: str, memory: str) -> dict[str, Any]:
    """Build requests and limits of a pod that trains nothing."""
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}
