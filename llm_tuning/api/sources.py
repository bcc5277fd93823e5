"""Where a base model or a data set comes from when it is given by URI, and the rules that both custom resources share.

A URI's own rules are those of `uri_rules`: written into the CRD from the same table that pydantic asks.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from llm_tuning.api.kube import Line, Time
from llm_tuning.api.rules import Rule
from llm_tuning.api.structural import RULES, rule
from llm_tuning.api.uri_rules import MAX_CHARACTERS, SourceKind, name_of_model, refusal
from llm_tuning.api.uri_rules import RULES as URI_RULES
from llm_tuning.core.model import ApiModel


def _written(kind: SourceKind) -> Any:
    """Return the rules of a URI as the CRD has them."""
    tests = ((each, f"self.matches(r'{each.pattern}')") for each in URI_RULES[kind])
    return [rule(test if each.wanted else f"!{test}", each.sentence) for each, test in tests]


def _checked(kind: SourceKind) -> AfterValidator:
    def check(text: str) -> str:
        if (refused := refusal(text, kind)) is not None:
            raise ValueError(refused)
        return text

    return AfterValidator(check)


_LENGTH = StringConstraints(min_length=1, max_length=MAX_CHARACTERS)
ModelUri = Annotated[str, _LENGTH, _checked("model"), Field(json_schema_extra={RULES: _written("model")})]
DatasetUri = Annotated[str, _LENGTH, _checked("dataset"), Field(json_schema_extra={RULES: _written("dataset")})]

SECRET_NEEDS_URI = Rule(
    "!has(self.credentialsSecret) || has(self.uri)",
    lambda group: group.credentials_secret is None or group.uri is not None,
    "is for a uri; what lies on the volume needs no credentials",
    "credentialsSecret",
)

CREDENTIALS = (
    "Secret in this namespace for that source, mounted into the fetching pod alone: its keys are environment variables "
    "there, such as HF_TOKEN (a hub), AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL (S3)."
)


def base_name(path: str | None, source: str | None) -> str:
    """Return the short name of a base: the last part of its path, or of its URI without the revision."""
    return path.rpartition("/")[2] if path is not None else name_of_model(source or "")


def is_base_name(name: str) -> str:
    """Write in CEL, of an object `self.model`, whether `name` (CEL, too) is the base's, as `base_name` has it."""
    path, source = "self.model.path", "self.model.uri"
    by_path = f"(has({path}) && ({name} == {path} || {path}.endsWith('/' + {name})))"
    by_uri = (
        f"(has({source}) && ({source}.endsWith('/' + {name}) || {source}.endsWith('/' + {name} + '/') || "
        f"({source}.startsWith('hf://') && {source}.contains('/' + {name} + '@'))))"
    )
    return f"({by_path} || {by_uri})"


class FetchProgress(ApiModel):
    """How far a fetch is, as it was last reported."""

    percent: Annotated[int, Field(ge=0, le=100)] = Field(description="Share of the bytes that are fetched, in percent.")

    bytes: Annotated[int, Field(ge=0)] | None = Field(None, description="Bytes that are fetched; of a fetch only.")

    total_bytes: Annotated[int, Field(ge=0)] | None = Field(None, description="Bytes that there are to fetch.")

    bytes_per_second: float | None = Field(None, description="Speed of the fetch.")

    remaining_seconds: Annotated[int, Field(ge=0)] | None = Field(None, description="Estimated time to the end.")

    last_update_time: Time = Field("", description="When the pod reported this (RFC 3339).")


class SourceStatus(ApiModel):
    """What a URI was found to be, once and for all retries."""

    uri: Line = Field(description="As the spec has it.")

    revision: Line | None = Field(
        None, description="Commit, or digest of what was found, that the URI was resolved to at first sight."
    )

    path: Line | None = Field(None, description="Where it lies on the claim, once it is there and whole.")
