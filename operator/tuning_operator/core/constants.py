"""Names, labels and durations, each with its reason."""

from __future__ import annotations

from llm_tuning.api import kube

FIELD_MANAGER = "tuning-operator"
"""Owner of the fields that server-side apply writes."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "tuning-operator"
LABEL_JOB, LABEL_UID, LABEL_ROLE = kube.LABEL_JOB, kube.LABEL_UID, kube.LABEL_ROLE
LABEL_SERVICE = "tuning.llmtuning.dev/inference-service"
"""Name of the InferenceService, on what belongs to it: for people's selectors."""
LABEL_FETCHES_FOR = "tuning.llmtuning.dev/fetches-for"
"""Name of the InferenceService, on what fetches its base: the pods of LABEL_SERVICE answer requests."""
LABEL_SERVICE_UID = "tuning.llmtuning.dev/inference-service-uid"
HASH_ANNOTATION = "tuning.llmtuning.dev/applied"
"""On what belongs to an InferenceService: a digest of what was applied, so that nothing is applied twice."""
MADE_FOR_ANNOTATION = "tuning.llmtuning.dev/made-for"
"""On an InferenceService that a TuningJob made: the uid of that job, which is no owner of it."""
LABEL_INDEX = kube.LABEL_INDEX
LABEL_JOB_UID = "batch.kubernetes.io/controller-uid"
"""Kubernetes' own, on each pod of a Job."""
NODES_PORT = 29400
"""On which the pod of index 0 listens for the others: torchrun's own choice."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PROGRESS_CA_ANNOTATION = "tuning.llmtuning.dev/progress-ca"
"""On the pod template: the downward API makes a file of it, so no object beside the Job has to carry it."""

SOURCES_CA_ANNOTATION = "tuning.llmtuning.dev/sources-ca"
"""The same for the CAs of hubs and stores."""

LEASE_NAME = "llm-tuning-operator"
STALE_REPORT_SECONDS = 45.0
"""An agent reports each 15 s; after three times that its report is stale."""

GPU_RESOURCE = "nvidia.com/gpu"
"""What a GPU is called where the settings name no other resource (a MIG slice, a time-shared GPU)."""

MESSAGE_CHARACTERS = 1024
"""Of a condition's message, which people read in a table."""

GRACE_PERIOD_SECONDS = 120
"""From SIGTERM to SIGKILL: a trainer ends its step and writes a checkpoint of up to some GB in it."""

PROGRESS_SECONDS = 10.0
"""At most one status write for progress in this time."""

TOKEN_SECONDS = 3600
"""Life of the token with which a trainer reports; the kubelet renews it."""

STUCK_SECONDS = 5.0
"""The grace period before a waiting pod is diagnosed: shorter waits are normal starts."""

UNPLACED_SECONDS = 20.0
"""The grace period for a pod without the condition PodScheduled: its claim may be in the making."""

QUEUED_LOOK_SECONDS = 300.0
"""At most so long between two reads of the Events of what Kueue holds back: that it is admitted, the watch tells."""

LONGEST_LOOK_SECONDS = 30.0
"""At most so long between two reads of the Events of what is stuck: a remedy or another trouble is seen in a minute."""

SIDECAR_SECONDS = 60.0
"""How long a sidecar may outlive the pod's work: proxies flush and drain for some 30 s, then nothing ends them."""

INIT_SECONDS = 30.0
"""How long an added init container may run before it is named: those of meshes set up a network in a second."""

UNREADY_SECONDS = 15.0
"""How long an added container may take to be ready once ours are: a proxy that starts takes some seconds."""

LOST_RESULT_SECONDS = 5.0
"""How long a finished Job's pod may be missing before its result counts as lost: two watches have no common order."""

SETTLED_SECONDS = 60.0
"""A trainer that has run for so long after a failure is no longer called failing."""

RESYNC_SECONDS = 60.0
"""Between two lists that heal what a watch has lost."""
