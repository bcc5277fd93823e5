"""What the corpus of a kind is made of, and the walk that makes cases of its schema."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.api.crd import Kind, build_schema
from llm_tuning.api.wire import WireModel

Path = tuple[str | int, ...]
Spec = dict[str, Any]
Texts = tuple[list[str], list[str]]
"""Good ones and bad ones."""
Together = tuple[str, Spec, bool, str]
"""Name of the case, what is put over the minimal spec, whether that is good, and else the field to be named."""


@dataclass(frozen=True)
class Case:
    """A spec, whether it is a good one, and else the field that every refusal has to name."""

    name: str
    spec: Spec
    good: bool
    field: str = ""


@dataclass(frozen=True)
class Change:
    """Specs that are put one after the other over an applied one, and whether each is taken."""

    name: str
    applied: Spec
    steps: tuple[tuple[Spec, bool], ...]
    field: str = ""


@dataclass(frozen=True)
class Corpus:
    """One kind's; paths are written `resources.tolerations[0].key`."""

    kind: Kind
    model: type[WireModel]
    """Of the whole object."""
    minimal: Spec
    full: Spec
    """Everything set that has no default, so that each can be taken away."""
    surroundings: Mapping[str, Spec]
    """What else has to be in a spec for the field to be allowed (the longest path that fits counts)."""
    patterns: Mapping[str, Texts]
    elements: Mapping[str, Callable[[int], Any]]
    """The n-th element of a list."""
    one_of: Mapping[str, str]
    """Fields of which a group has exactly one, and that group: a refusal names it when the field goes."""
    together: Iterable[Together]
    read: Collection[str]
    """Integers that a rule or the scale subresource reads. The server reads no 1.0 there and so refuses what it takes
    elsewhere, which pydantic does not know; kubectl writes 1 for a YAML 1.0, so only other clients meet it."""
    names: Texts
    """As metadata.name."""
    further_names: Iterable[tuple[Spec, Texts]] = ()
    """As metadata.name where that is put over the minimal spec."""
    further_changes: Callable[[], Iterable[Change]] = field(default=tuple)

    @property
    def spec(self) -> Spec:
        """The schema of the spec."""
        schema: Spec = build_schema(self.kind)["properties"]["spec"]
        return schema

    def named(self) -> Iterator[tuple[str, Spec, bool]]:
        """Yield names, each with its spec and whether it is a good one."""
        for change, texts in [({}, self.names), *self.further_names]:
            for names, good in zip(texts, (True, False), strict=True):
                yield from ((name, {**self.minimal, **change}, good) for name in names)

    def cases(self) -> list[Case]:
        """All of them; names are unique."""
        found = [Case("minimal", self.minimal, True), Case("full", self.full, True), *self._walk(self.spec, ())]
        found += [Case(name, {**self.minimal, **change}, good, at) for name, change, good, at in self.together]
        unique = {case.name: case for case in found}
        assert all(unique[case.name] == case for case in found)
        return list(unique.values())

    def changes(self) -> list[Change]:
        """All of them; where nothing is immutable, every good spec follows on another one."""
        found = list(self.further_changes())
        if self.kind.mutable is None:
            every = tuple((case.spec, True) for case in self.cases() if case.good)
            found.append(Change("through every good spec", self.minimal, every))
        return found

    def _walk(self, schema: Spec, path: Path) -> Iterator[Case]:
        for name, inner in schema.get("properties", {}).items():
            at = (*path, name)
            yield from self._of_field(inner, at, required=name in schema.get("required", []))
            if "properties" in inner:
                yield from self._walk(inner, at)
            elif "properties" in inner.get("items", {}):
                yield self._case("element", (*at, 0), None, good=False)
                yield from self._walk(inner["items"], (*at, 0))
        if "properties" in schema:
            yield self._case("unknown", (*path, "surprise"), 1, good=False)
            for name in [n for n in schema["properties"] if n != n.lower()][:1]:
                snake = re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", name)
                yield self._case("snake-case", (*path, snake), 1, good=False)

    def _of_field(self, schema: Spec, at: Path, *, required: bool) -> Iterator[Case]:
        where = shown(at)
        if required:
            yield Case(f"{where}: missing", without(self._surroundings(at), at), False, where)
        good = not required and where not in self.one_of
        yield Case(f"{where}: null", replaced(self._surroundings(at), at, None), good, self.one_of.get(where, where))
        if "x-kubernetes-int-or-string" in schema:
            wrong: list[Any] = [True, [], {}]
        else:
            wrong = {
                "integer": ["1", True, 1.5, []],
                "number": ["0.1", True, {}],
                "boolean": ["true", 0, "yes"],
                "string": [1, True, ["a"]],
                "object": [[], "x", 1],
                "array": [{}, "x"],
            }[schema["type"]]
        for value in wrong:
            yield self._case("wrong type", at, value, good=False)
        for value, good in self._values(schema, at):
            yield self._case("", at, value, good=good)

    def _values(self, schema: Spec, at: Path) -> Iterator[tuple[Any, bool]]:
        kind = schema.get("type")
        if "enum" in schema:
            yield from _of_enum(schema["enum"])
        elif kind == "integer":
            low, high = schema["minimum"], schema["maximum"]
            yield from [(low, True), (high, True), (low - 1, False), (high + 1, False)]
            if shown(at) not in self.read:
                yield float(low), True
        elif kind == "number":
            low, high = schema["minimum"], schema["maximum"]
            yield from [(low, True), (high, True), (low - 1e-3, False), (high + 1e-3, False)]
            yield from [(1, low <= 1 <= high), (0, low <= 0)]
        elif kind == "boolean":
            yield from [(True, True), (False, True)]
        elif kind == "string" or "x-kubernetes-int-or-string" in schema:
            is_ruled = "pattern" not in schema and shown(at) in self.patterns  # by rules, not by one pattern
            good, bad = self.patterns[shown(at)] if "pattern" in schema or is_ruled else (["a"], [])
            yield from [(value, True) for value in good] + [(value, False) for value in bad]
            if schema.get("minLength") and "" not in bad:
                yield "", False
            if not is_ruled:
                yield from _lengths(schema)
        elif kind == "object" and "maxProperties" in schema:
            yield from [
                ({f"k{i}": f"v{i}" for i in range(schema["maxProperties"] + more)}, not more) for more in (0, 1)
            ]
        elif kind == "array":
            element = self.elements[shown(at)]
            yield [], not schema.get("minItems")
            yield from [([element(n) for n in range(schema["maxItems"] + more)], not more) for more in (0, 1)]

    def _case(self, what: str, at: Path, value: Any, *, good: bool) -> Case:
        text = json.dumps(value, ensure_ascii=True)
        text = text if len(text) <= 40 else f"{text[:20]}... ({len(value)})"
        name = f"{shown(at)}: {what} {text}".replace(":  ", ": ")
        return Case(name, replaced(self._surroundings(at), at, value), good, "" if good else shown(at))

    def _surroundings(self, at: Path) -> Spec:
        where = shown(at)
        fitting = [path for path in self.surroundings if where == path or where.startswith((f"{path}.", f"{path}["))]
        return copy.deepcopy({**self.minimal, **(self.surroundings[max(fitting, key=len)] if fitting else {})})


def _of_enum(values: list[Any]) -> Iterator[tuple[Any, bool]]:
    yield from [(value, True) for value in values]
    if isinstance(values[0], str):
        yield from [(values[0].swapcase(), False), ("", False)]
    else:
        yield from [(float(values[0]), True), (min(values) - 1, False), (max(values) + 1, False)]


def _lengths(schema: Spec) -> Iterator[tuple[str, bool]]:
    start = "llm-tuning-" if "llm-tuning-" in schema.get("pattern", "") else ""
    text = start + "a" * (schema["maxLength"] - len(start))
    if re.search(schema.get("pattern", ""), text):
        yield from [(text, True), (text + "a", False)]


def shown(path: Path) -> str:
    """`resources.tolerations[0].key`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def replaced(spec: Spec, path: Path, value: Any) -> Spec:
    """`spec` with `value` there; groups on the way are made."""
    result = copy.deepcopy(spec)
    inner: Any = result
    for part in path[:-1]:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
    inner[path[-1]] = value
    return result


def without(spec: Spec, path: Path) -> Spec:
    """`spec` without what is there."""
    result = copy.deepcopy(spec)
    inner: Any = result
    for part in path[:-1]:
        inner = inner[part]
    inner.pop(path[-1], None)
    return result
