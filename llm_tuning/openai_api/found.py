"""Lists of objects in which one that this server cannot read hides no other: of another version, or of an unknown mode.

Its operator may go on with it, so it is neither left out nor taken for one that has failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from llm_tuning.client.objects import read_each
from llm_tuning.errors import InputError
from llm_tuning.openai_api.errors import ApiError

T = TypeVar("T")
Raw = dict[str, Any]


class Described(Protocol):
    """Whatever has an object's metadata, which every version can read."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Unreadable:
    """An object that this server cannot read."""

    raw: Mapping[str, Any]
    problem: InputError
    """What it does not understand."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        metadata: Mapping[str, Any] = self.raw["metadata"]
        return metadata

    @property
    def name(self) -> str:
        return str(self.metadata["name"])

    @property
    def text(self) -> str:
        """Its spec as text: what it may need is what it names anywhere."""
        return json.dumps(self.raw.get("spec"))

    def refusal(self) -> ApiError:
        """Build the answer to a request that cannot be met without reading it."""
        return ApiError(400, self.why, code="unreadable_object")

    @property
    def why(self) -> str:
        """Say what cannot be read, and what helps."""
        what, problems = str(self.raw.get("kind") or "object"), "; ".join(map(str, self.problem.problems))
        fix = "use kubectl for it, or a server of the version that has made it"
        return f"{what} {self.name} cannot be read by this server: {problems}; {fix}."


@dataclass(frozen=True)
class Found(Generic[T]):
    """A list: what can be read of it, and what cannot."""

    readable: Sequence[T]
    unreadable: Sequence[Unreadable] = ()

    @classmethod
    def of(cls, raws: Iterable[Raw], read: Callable[[Raw], T]) -> Found[T]:
        """Read each by itself."""
        unreadable: list[Unreadable] = []
        readable = read_each(raws, read, lambda raw, problem: unreadable.append(Unreadable(raw, problem)))
        return cls(readable, unreadable)


class ReadOnce(Generic[T]):
    """Reads each version of an object once: lists are asked for far more often than an object changes.

    What it returns is shared by all who ask, and not to be changed.
    """

    def __init__(self, read: Callable[[Raw], T]) -> None:
        self._read = read
        self._known: dict[str, tuple[str, T]] = {}
        """By uid: the resourceVersion that was read last, and what it says."""

    def list(self, raws: Sequence[Raw], *, is_all: bool) -> Found[T]:
        """Read a list; where it `is_all` there is, others are forgotten."""
        found = Found.of(raws, self._of)
        if is_all:
            there = {raw["metadata"]["uid"] for raw in raws}
            self._known = {uid: known for uid, known in self._known.items() if uid in there}
        return found

    def _of(self, raw: Raw) -> T:
        uid, version = raw["metadata"]["uid"], raw["metadata"]["resourceVersion"]
        known = self._known.get(uid)
        if known is None or known[0] != version:
            known = self._known[uid] = (version, self._read(raw))
        return known[1]
