"""Types, reasons and phases of a TuningJob's status: each word stands here once."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """What a condition is about, in the order in which they are shown."""

    FETCHED = "Fetched"
    DATASET_VALID = "DatasetValid"
    TRAINED = "Trained"
    REGISTERED = "Registered"
    EVALUATED = "Evaluated"
    SERVED = "Served"
    SUCCEEDED = "Succeeded"
    FINISHED = "Finished"
    SUSPENDED = "Suspended"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Phase(StrEnum):
    """One word for people."""

    PENDING = "Pending"
    FETCHING = "Fetching"
    CHECKING = "Checking"
    WAITING = "Waiting"
    QUEUED = "Queued"
    TRAINING = "Training"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a condition is as it is. Pods add reasons of their own (`llm_tuning.pod.contract.PodReason`)."""

    PENDING = "Pending"
    FETCHING = "Fetching"
    FETCHED = "Fetched"
    CHECKING = "Checking"
    DATASET_VALID = "DatasetValid"
    DATASET_INVALID = "DatasetInvalid"
    WAITING_FOR_ADAPTER = "WaitingForAdapter"
    ADAPTER_JOB_NOT_FOUND = "AdapterJobNotFound"
    ADAPTER_JOB_FAILED = "AdapterJobFailed"
    QUEUED = "Queued"
    STARTING = "Starting"
    TRAINING = "Training"
    SLOW_RANK = "SlowRank"
    READING_RESULT = "ReadingResult"
    TRAINED = "Trained"
    REGISTERED = "Registered"
    EVALUATED = "Evaluated"
    NO_HELD_OUT_ROWS = "NoHeldOutRows"
    SERVICE_CREATED = "ServiceCreated"
    SERVICE_EXISTS = "ServiceExists"
    SERVICE_REFUSED = "ServiceRefused"
    SUCCEEDED = "Succeeded"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUSPENDING = "Suspending"
    NOT_SUSPENDED = "NotSuspended"
    NOT_STALLED = "NotStalled"
    FINISHED = "Finished"
    NOT_REACHED = "NotReached"

    INVALID_INPUT = "InvalidInput"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    RETRIES_EXHAUSTED = "RetriesExhausted"
    OUT_OF_MEMORY = "OutOfMemory"
    GPU_UNAVAILABLE = "GPUUnavailable"
    TRAINER_FAILING = "TrainerFailing"
    CHECK_FAILING = "CheckFailing"
    FETCH_FAILING = "FetchFailing"
    RESULT_LOST = "ResultLost"

    IMAGE_PULL_FAILED = "ImagePullFailed"
    SECRET_NOT_FOUND = "SecretNotFound"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    CLAIM_PENDING = "ClaimPending"
    VOLUME_MOUNT_FAILED = "VolumeMountFailed"
    UNSCHEDULABLE = "Unschedulable"
    RUNTIME_CLASS_NOT_FOUND = "RuntimeClassNotFound"
    QUOTA_EXCEEDED = "QuotaExceeded"
    POD_SECURITY_DENIED = "PodSecurityDenied"
    POD_CREATION_FAILED = "PodCreationFailed"
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"
    SIDECAR_RUNNING = "SidecarRunning"
    SIDECAR_FAILING = "SidecarFailing"
    NAME_TAKEN = "NameTaken"
    SPEC_INVALID = "SpecInvalid"
    GPUS_NOT_COMBINABLE = "GPUsNotCombinable"


class ServiceConditionType(StrEnum):
    """What a condition of an InferenceService is about, in the order in which they are shown."""

    READY = "Ready"
    ADAPTERS_LOADED = "AdaptersLoaded"
    ADAPTERS_EFFECTIVE = "AdaptersEffective"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ServiceReason(StrEnum):
    """Why a condition of an InferenceService is as it is; Reason has the words of what is stuck."""

    PENDING = "Pending"
    READY = "Ready"
    NO_REPLICAS = "NoReplicas"
    STARTING = "Starting"
    ROLLING = "Rolling"
    REPLICAS_NOT_READY = "ReplicasNotReady"
    NO_REPORT = "NoReport"
    NO_ADAPTERS = "NoAdapters"
    LOADED = "Loaded"
    EFFECTIVE = "Effective"
    SETTLED = "Settled"
    NOT_STALLED = "NotStalled"
    PLAN_FAILED = "PlanFailed"
    ENGINE_FAILING = "EngineFailing"
    AGENT_FAILING = "AgentFailing"
    API_KEY_EMPTY = "ApiKeyEmpty"


class AdapterReason(StrEnum):
    """What can be said of one adapter on one engine."""

    WAITING_FOR_TUNING_JOB = "WaitingForTuningJob"
    TUNING_JOB_NOT_FOUND = "TuningJobNotFound"
    TUNING_JOB_FAILED = "TuningJobFailed"

    ENGINE_DOWN = "EngineDown"
    LOADING = "Loading"
    PROVING = "Proving"

    ADAPTER_NOT_FOUND = "AdapterNotFound"
    ADAPTER_INVALID = "AdapterInvalid"
    BASE_MISMATCH = "BaseMismatch"
    BASE_WITHOUT_LORA = "BaseWithoutLoRA"
    RANK_TOO_HIGH = "RankTooHigh"
    TEMPLATE_MISMATCH = "TemplateMismatch"
    TARGET_MODULES_MISMATCH = "TargetModulesMismatch"
    TOO_MANY_ADAPTERS = "TooManyAdapters"
    LOAD_FAILED = "LoadFailed"

    EFFECTIVE = "Effective"
    NO_EFFECT = "NoEffect"
    DIFFERENT = "Different"
    TOO_SMALL_TO_TELL = "TooSmallToTell"
    CANNOT_BE_PROVEN = "CannotBeProven"
