"""What both custom resources share: names as Kubernetes has them, quantities, volumes, placement, conditions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from llm_tuning.api.rules import Rule, RuledModel
from llm_tuning.api.structural import INT_OR_STRING, RULES, rule
from llm_tuning.core.model import PATTERN_WORDS, ApiModel, FieldError

GROUP = "tuning.llmtuning.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CATEGORY = "tuning"
"""`kubectl get tuning` shows every kind of it."""
LABEL_JOB = f"{GROUP}/job"
"""Name of the TuningJob, on its Jobs and pods: for people's selectors."""
LABEL_UID = f"{GROUP}/job-uid"
"""uid of the TuningJob: what belongs to a namesake that was deleted is not taken for this one's."""
LABEL_ROLE = f"{GROUP}/role"
"""check, train or report."""
LABEL_INDEX = "batch.kubernetes.io/job-completion-index"
"""Kubernetes' own, on each pod of an Indexed Job."""

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
DNS_LABEL = rf"^{_LABEL}$"
DNS_SUBDOMAIN = rf"^{SUBDOMAIN}$"
QUALIFIED_NAME = rf"^({SUBDOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
SECRET_NAME = rf"^llm-tuning-{SUBDOMAIN}$"

# Segments but `.` and `..`, without control characters. RE2 has no look-ahead: a segment starts with no dot, with one
# before another character, or with two before at least one more.
_CHARACTER = r"[^/\x00-\x1f\x7f]"
_SEGMENT = rf"(\.?[^./\x00-\x1f\x7f]{_CHARACTER}*|\.\.{_CHARACTER}+)"
_RELATIVE_PATH = rf"^{_SEGMENT}(/{_SEGMENT})*$"
_CPU = r"^([1-9][0-9]{0,3}(\.[0-9]{1,3})?|0\.0{0,2}[1-9][0-9]{0,2}|[1-9][0-9]{0,6}m)$"
_MEMORY = r"^[1-9][0-9]*(\.[0-9]{1,3})?(M|G|T|Mi|Gi|Ti)$"
_ENDS = "beginning and ending with a letter or a digit"
PATTERN_WORDS |= {
    DNS_LABEL: f"a name of lower-case letters, digits and -, {_ENDS}",
    DNS_SUBDOMAIN: f"a name of lower-case letters, digits, - and ., {_ENDS}",
    QUALIFIED_NAME: "the key of a label, such as pool or example.com/pool",
    LABEL_VALUE: f"the value of a label: letters, digits, -, _ and ., {_ENDS}",
    SECRET_NAME: "a name that begins with llm-tuning-, since no other Secret is mounted",
    _RELATIVE_PATH: "a path on the claim, such as base/model, that neither begins with / nor has . or .. in it",
    _CPU: "a number of cores, such as 2, 0.5 or 500m",
    _MEMORY: "a number with its unit, such as 8Gi",
}

RelativePath = Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=_RELATIVE_PATH)]
ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=QUALIFIED_NAME)]
LabelValue = Annotated[str, StringConstraints(max_length=63, pattern=LABEL_VALUE)]


def _cores(value: object) -> object:
    """Read a whole number of CPUs as text: `cpu: 4` is what people write."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


CpuQuantity = Annotated[
    str,
    StringConstraints(max_length=16, pattern=_CPU),
    BeforeValidator(_cores),
    Field(json_schema_extra={INT_OR_STRING: True, "minimum": 1, "maximum": 9999}),
]
MemoryQuantity = Annotated[str, StringConstraints(min_length=1, max_length=16, pattern=_MEMORY)]
"""With a unit: a bare 8 would be eight bytes."""

_OPERATORS_OWN = "llm-tuning-operator"
_NO_OPERATORS_SECRET = (
    f"Secrets whose name begins with {_OPERATORS_OWN} are the operator's own; give yours another name, such as "
    "llm-tuning-mlflow"
)


def _not_the_operators(name: str) -> str:
    if name.startswith(_OPERATORS_OWN):
        raise ValueError(f"{_NO_OPERATORS_SECRET}, got {name!r}")
    return name


SecretName = Annotated[
    str,
    StringConstraints(max_length=253, pattern=SECRET_NAME),
    AfterValidator(_not_the_operators),
    Field(json_schema_extra={RULES: [rule(f"!self.startsWith('{_OPERATORS_OWN}')", _NO_OPERATORS_SECRET)]}),
]
"""The operator's keys lie in its namespace, and who may create TuningJobs there reads what a pod of one can mount."""

Line = Annotated[str, StringConstraints(max_length=1024)]
Time = Annotated[str, StringConstraints(max_length=64)]
"""RFC 3339, as text: the status is read by whoever reads it."""


class ConfigMapKeyRef(ApiModel):
    """A key of a ConfigMap in this namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")

    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]*[-_a-zA-Z0-9]$")] = (
        Field(description="Key whose value is the file of rows, in any of the forms that a file on the claim may have.")
    )


class VolumeSpec(ApiModel):
    """The volume that has it all: base/ datasets/ models/."""

    claim_name: ObjectName = Field(
        description="PersistentVolumeClaim in this namespace. Base models and data sets are read from it; the adapter is written to models/<modelId>/, work in progress to models/.work/."
    )


class SecretRef(ApiModel):
    """A Secret in this namespace."""

    name: SecretName = Field(
        description="Name of the Secret; it has to begin with llm-tuning-, so that no other Secret can be reached, and not with llm-tuning-operator, as the operator's own do."
    )


class Toleration(RuledModel):
    """A taint that pods of this job tolerate, as in a pod."""

    RULES = (
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            lambda toleration: toleration.key is not None or toleration.operator == "Exists",
            "without a key the operator must be Exists",
        ),
        Rule(
            "self.operator != 'Exists' || !has(self.value) || self.value == ''",
            lambda toleration: toleration.operator != "Exists" or not toleration.value,
            "value must be left out when the operator is Exists",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            lambda toleration: toleration.toleration_seconds is None or toleration.effect == "NoExecute",
            "tolerationSeconds needs effect NoExecute",
        ),
    )

    key: LabelKey | None = Field(
        None, description="Taint key; without it, with operator Exists, every taint is tolerated."
    )

    operator: Literal["Exists", "Equal"] = Field("Equal", description="Equal compares the value, Exists only the key.")

    value: LabelValue | None = Field(None, description="Taint value, for operator Equal.")

    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect; without it all effects."
    )

    toleration_seconds: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = Field(
        None, description="For effect NoExecute: how long the pod stays, in seconds; without it, for ever."
    )


class PlacementSpec(ApiModel):
    """Where pods may run."""

    node_selector: Annotated[dict[LabelKey, LabelValue], Field(max_length=32)] | None = Field(
        None, description="Labels that a node must have."
    )

    tolerations: Annotated[list[Toleration], Field(max_length=32)] | None = Field(
        None, description="Taints that the pods tolerate."
    )

    priority_class_name: ObjectName | None = Field(None, description="PriorityClass of the pods.")

    runtime_class_name: ObjectName | None = Field(
        None,
        description="RuntimeClass of the pod that has the GPUs, such as nvidia; pods without GPUs get none. Without it the operator's default, if it has one, and else the node's own runtime.",
    )


class Condition(ApiModel):
    """One thing that is so, is not so, or is not known yet."""

    type: Annotated[str, StringConstraints(max_length=64)] = Field(description="What the condition is about.")

    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")

    reason: Annotated[str, StringConstraints(max_length=128)] = Field(description="One CamelCase word.")

    message: Annotated[str, StringConstraints(max_length=4096)] = Field("", description="What to know or to do.")

    observed_generation: int = Field(0, description="metadata.generation that this was found for.")

    last_transition_time: Time = Field("", description="When the status last changed (RFC 3339).")


def objects_path(namespace: str, plural: str) -> str:
    """Return where the API server has a namespace's objects of one of our kinds."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/{plural}"


def check_name(metadata: Mapping[str, Any], *, pattern: str, rule: str, characters: int) -> None:
    """Raise FieldError unless `metadata` names the object as its kind allows, or leaves the name to the server."""
    name = metadata.get("name")
    if name is None:
        if not metadata.get("generateName"):
            raise FieldError("metadata.name", "is required; add it")
        return
    if not isinstance(name, str):
        raise FieldError("metadata.name", f"must be text, got {name!r}; quote it")
    if re.fullmatch(pattern, name) is None:
        raise FieldError("metadata.name", f"must be {rule}, got {name[:60]!r}")
    if len(name) > characters:
        raise FieldError("metadata.name", f"must have at most {characters} characters, got {len(name)}")
