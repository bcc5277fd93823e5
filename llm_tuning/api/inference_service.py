"""The InferenceService custom resource: vLLM with adapters of finished TuningJobs, kept loaded and proven.

KServe has a kind of this name too; wherever the two may meet, this one is inferenceservices.tuning.llmtuning.dev.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from llm_tuning.api.kube import (
    DNS_SUBDOMAIN,
    Condition,
    CpuQuantity,
    Line,
    MemoryQuantity,
    PlacementSpec,
    RelativePath,
    SecretName,
    SecretRef,
    VolumeSpec,
    check_name,
)
from llm_tuning.api.rules import Rule, RuledModel, exactly_one_of
from llm_tuning.api.sources import (
    CREDENTIALS,
    SECRET_NEEDS_URI,
    FetchProgress,
    ModelUri,
    SourceStatus,
    base_name,
    is_base_name,
)
from llm_tuning.api.tuning import ModelId
from llm_tuning.api.wire import WireModel
from llm_tuning.core.model import PATTERN_WORDS, ApiModel, FieldError
from llm_tuning.core.vllm_parsers import FROM_TOKENIZER, NO_PARSER, ReasoningParser, ToolCallParser

KIND, PLURAL, SINGULAR, SHORT_NAME = "InferenceService", "inferenceservices", "inferenceservice", "tisvc"
NAME_CHARACTERS = 40
"""Of an InferenceService: its pods append to it, and its Service is a DNS label."""
TUNING_JOB_NAME_CHARACTERS = 50
MAX_ROUTES, MAX_TARGETS = 64, 16

MODEL_NAME = r"^[A-Za-z0-9]([-A-Za-z0-9._:/]*[A-Za-z0-9])?$"
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=MODEL_NAME)]
"""What clients send as `model`."""
SERVICE_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""As the Service of an InferenceService may be called."""
PATTERN_WORDS |= {
    MODEL_NAME: "a name of letters, digits, -, ., _, : and /, beginning and ending with a letter or a digit",
    SERVICE_NAME: "a name of lower-case letters, digits and -, beginning with a letter and not ending with -",
}
ServiceName = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS, pattern=SERVICE_NAME)]


class ServedModelSpec(RuledModel):
    """The base model: exactly one of `path` and `uri`."""

    RULES = (exactly_one_of("path", "uri"), SECRET_NEEDS_URI)

    path: RelativePath | None = Field(
        None, description="Folder of the base model on the claim, such as base/qwen3-0.6b. Relative, without `..`."
    )

    uri: ModelUri | None = Field(
        None,
        description="Where the base model comes from: hf://owner/name[@revision] of a hub, or s3://bucket/prefix of any S3 (Google's buckets by their S3-compatible endpoint, AWS_ENDPOINT_URL in the Secret). It is fetched to sources/ on the claim before a replica starts, once for all that ask for the same commit, pinned in status.model.revision; a branch that moves later changes nothing here.",
    )

    credentials_secret: SecretRef | None = Field(None, description=CREDENTIALS)

    name: ModelName | None = Field(
        None, description="Name under which clients reach the base itself; without it the last part of the path or URI."
    )

    @property
    def base_name(self) -> str:
        """What the base is called: by name, path or URI."""
        return self.name or base_name(self.path, self.uri)


class RouteTarget(RuledModel):
    """An adapter behind a route: exactly one of `tuningJob` and `modelId`."""

    RULES = (exactly_one_of("tuningJob", "modelId"),)

    tuning_job: (
        Annotated[str, StringConstraints(min_length=1, max_length=TUNING_JOB_NAME_CHARACTERS, pattern=DNS_SUBDOMAIN)]
        | None
    ) = Field(
        None,
        description="Name of a TuningJob in this namespace; its adapter is attached when it succeeds, without a restart, and stays when the TuningJob goes.",
    )

    model_id: ModelId | None = Field(None, description="model_id of a finished adapter on the claim, of the same base.")

    weight: Annotated[int, Field(ge=0, le=1000)] = Field(
        1,
        description="Share of the route's requests, relative to the other targets; 0 keeps the adapter loaded without requests.",
    )


class Route(RuledModel):
    """A name that clients use as `model`, and the adapters that answer it."""

    RULES = (
        Rule(
            "self.targets.exists(t, t.weight > 0)",
            lambda route: any(target.weight for target in route.targets),
            "at least one target must have a weight above 0",
        ),
    )

    name: ModelName = Field(description="What clients send as `model`; unique, and not the base's name.")

    targets: Annotated[list[RouteTarget], Field(min_length=1, max_length=MAX_TARGETS)] = Field(
        description="Adapters that share the route's requests by weight. Requests with the same `user` go to the same one. Changing weights loads and restarts nothing."
    )


class ServiceResourcesSpec(PlacementSpec):
    """What each vLLM is given, and where its pods may run."""

    gpus: Annotated[int, Field(ge=0, le=16)] = Field(
        1, description="GPUs (nvidia.com/gpu) of each replica, tensor-parallel from 2 on; 0 serves on the CPU."
    )

    cpu: CpuQuantity = Field("2", description="CPU cores that each replica requests, such as 4, 0.5 or 500m.")

    memory: MemoryQuantity = Field(
        "16Gi",
        description="Memory of each replica with its unit, request and limit. A quarter of it is for adapters; on the CPU, for the KV cache.",
    )


def _of_one_kind(vllm: VllmSpec) -> bool:
    given = {vllm.tool_call_parser, vllm.reasoning_parser} - {None, NO_PARSER}
    return FROM_TOKENIZER not in given or len(given) == 1


class VllmSpec(RuledModel):
    """Engine flags of vLLM: an allow-list. Changing one is a rollout."""

    RULES = (
        Rule(
            "!(has(self.toolCallParser) && has(self.reasoningParser)) || "
            "(self.toolCallParser == 'hf') == (self.reasoningParser == 'hf') || "
            "self.toolCallParser == 'none' || self.reasoningParser == 'none'",
            _of_one_kind,
            "toolCallParser and reasoningParser must both be hf or neither; name vLLM's own for both, or set one to none",
        ),
    )

    max_model_len: Annotated[int, Field(ge=16, le=10_000_000)] | None = Field(
        None, description="Longest prompt and answer together, in tokens; without it as much as the memory holds."
    )

    gpu_memory_utilization: Annotated[float, Field(ge=0.1, le=0.99)] | None = Field(
        None, description="Share of the GPU's memory that vLLM takes; without it vLLM's own default."
    )

    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = Field(
        None,
        description="Precision of weights and computation; without it what the base was saved in, on the CPU that of the adapters' training, or bfloat16 where vLLM's CPU kernel has no other (Qwen3.5, Qwen3-Next).",
    )

    language_model_only: bool | None = Field(
        None,
        description="Serve the language model of a base that also sees or hears alone: less memory, no image processor needed, and requests with images are refused. Without it true, since adapters are trained and proven on text, unless an adapter that is wanted when a replica starts changes those layers.",
    )

    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] | None = Field(
        None,
        description="Highest rank of an adapter: 8, 16, 32, 64, 128, 256, 320 or 512; without it the highest that is wanted when a replica starts, at least 16. A later adapter above it gets RankTooHigh.",
    )

    max_loras: Annotated[int, Field(ge=1, le=128)] | None = Field(
        None,
        description="Adapters in one batch; without it the number of targets, at most 8. On the CPU it bounds how many loads a pod takes before a restart; without it 8, or twice the targets.",
    )

    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Requests in one batch; without it vLLM's own default."
    )

    max_num_batched_tokens: Annotated[int, Field(ge=16, le=1_048_576)] | None = Field(
        None, description="Tokens in one step; without it vLLM's own default."
    )

    enable_prefix_caching: bool | None = Field(
        None, description="Reuse the cache of equal beginnings; without it vLLM's own default."
    )

    enforce_eager: bool | None = Field(
        None, description="Start without compiling: quicker to start, slower to serve; without it only on the CPU."
    )

    model_runner_v2: bool | None = Field(
        None,
        description="Run the model on GPUs by vLLM's Model Runner V2; without it vLLM's own choice. Try false where answers or proofs are wrong with one version of vLLM.",
    )

    tool_call_parser: ToolCallParser | None = Field(
        None,
        description="How an answer's text is read for calls of tools (vLLM's --tool-call-parser); none turns it off, and requests with tools are refused. Without it the one that reads what the base's chat template writes, where that is certain, else none.",
    )

    reasoning_parser: ReasoningParser | None = Field(
        None,
        description="How an answer's text is read for reasoning (vLLM's --reasoning-parser), which clients then get apart from the answer; none leaves it in the answer. Without it the one that reads what the base's chat template writes, where that is certain, else none.",
    )

    max_choices: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Most answers to one prompt that a request may ask for (n, best_of); prompts times answers may be 16 times that. Without it 16, so that one request cannot keep the engine from all others.",
    )


class ApiKeySecretRef(ApiModel):
    """A key of a Secret in this namespace."""

    name: SecretName = Field(
        description="Name of the Secret; it has to begin with llm-tuning-, so that no other Secret can be reached, and not with llm-tuning-operator, as the operator's own do."
    )

    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]*[-_a-zA-Z0-9]$")] = (
        Field("apiKey", description="Key of the Secret whose value clients send as bearer token.")
    )


class RolloutSpec(RuledModel):
    """How replicas are replaced when the model, an engine flag or the resources change."""

    RULES = (
        Rule(  # presence is asked since the group's default {} meets the rule before its inner defaults
            "!has(self.maxSurge) || !has(self.maxUnavailable) || self.maxSurge + self.maxUnavailable > 0",
            lambda rollout: rollout.max_surge + rollout.max_unavailable > 0,
            "maxSurge and maxUnavailable must not both be 0",
        ),
    )

    max_surge: Annotated[int, Field(ge=0, le=64)] = Field(
        1, description="Replicas above the wanted number while rolling; each takes GPUs of its own."
    )

    max_unavailable: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="Replicas that may be missing while rolling; set it to 1 and maxSurge to 0 where no GPU is spare.",
    )


def _takes_the_bases_name(spec: InferenceServiceSpec, name: str) -> bool:
    if spec.model.name:
        return name == spec.model.name
    path = spec.model.path
    return name == spec.base_name or (path is not None and (name == path or path.endswith(f"/{name}")))


_OTHER_THAN_BASE = Rule(
    "!has(self.routes) || self.routes.all(r, has(self.model.name) ? r.name != self.model.name : "
    f"!{is_base_name('r.name')})",
    lambda spec: not any(_takes_the_bases_name(spec, route.name) for route in spec.routes),
    "a route must not have the base's name; rename it, or set model.name",
    "routes",
)


class InferenceServiceSpec(WireModel):
    """What is to be served."""

    RULES = (_OTHER_THAN_BASE,)

    model: ServedModelSpec = Field(description="The base model.")

    volume: VolumeSpec = Field(
        description="The volume that has the base and the adapters; mounted read-only by what serves."
    )

    routes: Annotated[list[Route], Field(max_length=MAX_ROUTES)] = Field(
        default_factory=list,
        description="Names that clients use, and the adapters behind them. Changing them restarts nothing.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    replicas: Annotated[int, Field(ge=0, le=64)] = Field(1, description="Pods, each with a vLLM of its own.")

    resources: ServiceResourcesSpec = Field(
        default_factory=ServiceResourcesSpec, description="What each vLLM is given, and where its pods may run."
    )

    vllm: VllmSpec = Field(
        default_factory=VllmSpec, description="Engine flags of vLLM: an allow-list. Changing one is a rollout."
    )

    rollout: RolloutSpec = Field(default_factory=RolloutSpec, description="How replicas are replaced.")

    api_key_secret: ApiKeySecretRef | None = Field(
        None,
        description="Ask clients for an API key (Authorization: Bearer ...); without it everyone in reach is served.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [route.name for route in self.routes]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise FieldError(f"routes[{index}]", f"another route has the name {name!r} already; rename one")
        return self

    @property
    def base_name(self) -> str:
        """What clients call the base."""
        return self.model.base_name


class ServeSpec(ApiModel):
    """The InferenceService that a TuningJob makes when it succeeds: one route, to its adapter."""

    name: ServiceName = Field(
        description="Name of the InferenceService and of its route. One that is there already is left as it is."
    )

    replicas: Annotated[int, Field(ge=0, le=64)] = Field(1, description="Pods, each with a vLLM of its own.")

    resources: ServiceResourcesSpec = Field(
        default_factory=ServiceResourcesSpec, description="What each vLLM is given, and where its pods may run."
    )

    vllm: VllmSpec = Field(default_factory=VllmSpec, description="Engine flags of vLLM: an allow-list.")

    api_key_secret: ApiKeySecretRef | None = Field(None, description="Ask clients for an API key.")


class AdapterStatus(ApiModel):
    """One adapter that the routes want."""

    model_id: Line | None = Field(None, description="Name of the adapter, once it is known.")

    tuning_job: Line | None = Field(
        None, description="The TuningJob that it was named by; kept after that one is gone."
    )

    loaded_replicas: Annotated[int, Field(ge=0)] = Field(0, description="Ready replicas that have it loaded.")

    effective: Literal["True", "False", "Unknown"] = Field(
        "Unknown", description="Whether it moves the answers as training did, proven on every ready replica."
    )

    reason: Annotated[str, StringConstraints(max_length=128)] = Field("", description="One CamelCase word.")

    message: Line = Field("", description="What to know or to do.")


class InferenceServiceStatus(ApiModel):
    """What the operator has found; only it writes here."""

    observed_generation: int | None = Field(None, description="metadata.generation that this status is about.")

    url: Line | None = Field(None, description="Where the cluster reaches it; append /v1 for OpenAI clients.")

    replicas: Annotated[int, Field(ge=0)] = Field(0, description="Pods there are.")

    ready_replicas: Annotated[int, Field(ge=0)] = Field(0, description="Pods that answer.")

    selector: Line | None = Field(None, description="Label selector of the pods, for autoscalers.")

    model: SourceStatus | None = Field(
        None, description="Of model.uri: what it was resolved to, and where the base that is served lies."
    )

    progress: FetchProgress | None = Field(
        None,
        description="How far the fetch of model.uri is, while it is under way and has reported.",
    )

    adapters: Annotated[list[AdapterStatus], Field(max_length=MAX_ROUTES * MAX_TARGETS)] = Field(
        default_factory=list, description="The adapters that the routes want, each on all ready replicas."
    )

    conditions: Annotated[list[Condition], Field(max_length=16)] = Field(
        default_factory=list,
        description="The truth, by type. Ready: every replica answers on each route, each adapter as it was trained.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class InferenceService(WireModel):
    """The whole object; `metadata` is Kubernetes' own."""

    api_version: Literal["tuning.llmtuning.dev/v1alpha1"] = Field(
        "tuning.llmtuning.dev/v1alpha1", description="Group and version."
    )

    kind: Literal["InferenceService"] = Field("InferenceService", description="Kind.")

    metadata: dict[str, Any] = Field(description="Standard object metadata.")

    spec: InferenceServiceSpec = Field(description="What is to be served.")

    status: InferenceServiceStatus | None = Field(None, description="What the operator has found.")

    @model_validator(mode="after")
    def _dns_label(self) -> Self:
        check_name(
            self.metadata,
            pattern=SERVICE_NAME.strip("^$"),
            rule="lower case letters, digits and -, with a letter first",
            characters=NAME_CHARACTERS,
        )
        return self


def read_status(raw: object) -> InferenceServiceStatus:
    """Read the status of an object as it stands in the cluster; fields that another version wrote are dropped."""
    return InferenceServiceStatus.model_validate(raw if isinstance(raw, dict) else {}, strict=False, extra="ignore")
