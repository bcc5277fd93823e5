"""A custom resource as a reconcile sees it: what all kinds have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llm_tuning.core.model import ApiModel
from llm_tuning.errors import InputError, Problem

Spec = TypeVar("Spec", bound=ApiModel)


@dataclass(frozen=True)
class CustomResource:
    """An object of one of our kinds, and what the API server said about what was wanted of it."""

    raw: Mapping[str, Any]
    problems: tuple[Problem, ...] = field(default=(), kw_only=True)
    """Why it has no spec: the stored object does not fit this version's models."""
    refusals: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """Words of the API server by the kind of the object that it refused in this reconcile."""

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def generation(self) -> int:
        return int(self.raw["metadata"].get("generation", 1))

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]


def parse_spec(model: type[Spec], raw: Mapping[str, Any]) -> tuple[Spec | None, tuple[Problem, ...]]:
    """Parse the spec of `raw`; None and the problems where it does not fit."""
    try:
        return model.parse(raw.get("spec") or {}, where="spec"), ()
    except InputError as error:
        return None, error.problems


def dump_status(status: ApiModel) -> dict[str, Any]:
    """Dump a status as it stands in the object: camelCase, without what is not known."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def shown(problems: Iterable[Problem]) -> str:
    """Join problems for one condition."""
    return "; ".join(str(problem) for problem in problems)
