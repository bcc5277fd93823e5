"""What every Job of the operator is: a plain `batch/v1` Job with one pod of ours under the restricted profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.api.kube import PlacementSpec
from llm_tuning.errors import EXIT_INPUT
from llm_tuning.pod.contract import ROOT, TERMINATION_LOG
from llm_tuning.pod.roles import PodRole
from tuning_operator.core.constants import GRACE_PERIOD_SECONDS
from tuning_operator.core.settings import Settings
from tuning_operator.pods.template import RESTRICTED, placement, pod_security


@dataclass
class PodParts:
    """What one role adds to the common pod."""

    image: str
    resources: dict[str, Any]
    environment: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    annotations: dict[str, str] = field(default_factory=dict)
    reads_dataset: bool = True
    runtime_class: str | None = None
    has_deadline: bool = True
    """Whether spec.activeDeadlineSeconds is for it."""
    is_online: bool = False
    """Whether it may ask a hub."""
    nodes: int = 1
    """Pods that work together: from 2 on those of an Indexed Job."""
    subdomain: str | None = None
    """The headless Service by which they find each other."""


def build_pod(
    role: PodRole,
    parts: PodParts,
    settings: Settings,
    *,
    claim: str,
    asked: PlacementSpec,
    environment: list[dict[str, Any]],
    volumes: list[dict[str, Any]] | None = None,
    mounts: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Build a pod's spec: the claim, one container, and what its role adds."""
    offline = [] if parts.is_online else [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    container: dict[str, Any] = {
        "name": role.container,
        "image": parts.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "llm_tuning.pod", role.name],
        "env": [*environment, {"name": "HOME", "value": "/tmp"}, *offline, *parts.environment],
        "resources": parts.resources,
        "securityContext": RESTRICTED,
        "terminationMessagePath": str(TERMINATION_LOG),
        # A container that could not even start its program leaves the end of its log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "workspace", "mountPath": str(ROOT)},
            {"name": "tmp", "mountPath": "/tmp"},
            *parts.mounts,
            *(mounts or ()),
        ],
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_PERIOD_SECONDS,
        "securityContext": pod_security(settings),
        "containers": [container],
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "tmp", "emptyDir": {}},
            *parts.volumes,
            *(volumes or ()),
        ],
    }
    if parts.subdomain is not None:
        pod["subdomain"] = parts.subdomain
    if parts.runtime_class is not None:
        pod["runtimeClassName"] = parts.runtime_class
    return pod | placement(asked, settings)


def build_job_of(
    role: PodRole,
    parts: PodParts,
    pod: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any],
    labels: Mapping[str, str],
    retries: int,
) -> dict[str, Any]:
    """Build the Job of `pod`. `suspend` is left to Kueue; bad input fails at once, disruptions cost no retry.

    Of several pods that work together the first that fails ends the Job: another attempt is another Job.
    """
    template: dict[str, Any] = {"metadata": {"labels": dict(labels)}, "spec": pod}
    if parts.annotations:
        template["metadata"]["annotations"] = parts.annotations
    exit_rule = {"containerName": role.container, "operator": "In", "values": [EXIT_INPUT]}
    refused: dict[str, Any] = {"action": "FailJob", "onExitCodes": exit_rule}
    disrupted: dict[str, Any] = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    together = parts.nodes > 1
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": dict(metadata),
        "spec": {
            "backoffLimit": 0 if together else retries,
            **({"completionMode": "Indexed"} if together else {}),
            "completions": parts.nodes,
            "parallelism": parts.nodes,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [refused] if together else [refused, disrupted]},
            "template": template,
        },
    }
