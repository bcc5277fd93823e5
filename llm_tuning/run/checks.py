"""How the checks of a run are put together: every problem that is found is kept, under the API field it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from llm_tuning.errors import InputError, Problem

T = TypeVar("T")

BASE, ADAPTER, DATASET, EVALUATION, TARGETS, TRACKING, OUTPUT = (
    "model.path",
    "model.adapter.modelId",
    "dataset.path",
    "dataset.evaluation",
    "lora.targetModules",
    "tracking.uri",
    "output_dir",
)
"""Where in the API the subject of a check comes from: `Problem.field`."""


class Collected:
    """Runs checks one after the other and keeps every problem, so that a user sees all of them at once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def run(self, field: str, check: Callable[[], T]) -> T | None:
        """Return what `check` returns, None if it found a problem. `field` is its subject's place in the API."""
        try:
            return of_field(field, check)
        except InputError as error:
            self._problems.extend(error.problems)
            return None

    def raise_if_any(self) -> None:
        if self._problems:
            raise InputError(self._problems)


def of_field(field: str, check: Callable[[], T]) -> T:
    """Return what `check` returns; problems that it raises without an API field of their own are given `field`."""
    try:
        return check()
    except InputError as error:
        raise InputError([replace(p, field=p.field or field) for p in error.problems]) from None
