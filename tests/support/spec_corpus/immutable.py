"""Changes to fields that stay as they were applied: each changed and changed back, set and taken away."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.spec_corpus.corpus import Change, Path, Spec, replaced, shown, without


@dataclass(frozen=True)
class Immutable:
    """The fields of `schema` but `skipped` ones, changed in the spec `full`."""

    schema: Spec
    full: Spec
    skipped: Collection[str]
    others: Mapping[str, Spec]
    """Another good value of an optional group."""

    def changes(self) -> Iterator[Change]:
        """All of them."""
        yield from self._of_group(self.schema, ())

    def _of_group(self, schema: Spec, path: Path) -> Iterator[Change]:
        for name, inner in schema["properties"].items():
            at = (*path, name)
            always = name in schema.get("required", []) or "default" in inner
            if "properties" in inner and always:
                yield from self._of_group(inner, at)
            elif shown(at) not in self.skipped:
                yield from self._of_field(inner, at, always=always)

    def _of_field(self, schema: Spec, at: Path, *, always: bool) -> Iterator[Change]:
        full, where = self.full, shown(at)
        other = replaced(full, at, self.others.get(where) or _another(schema, _at(full, at)))
        yield Change(f"{where}: changed, then back", full, ((other, False), (full, True)), where)
        if not always:
            rest = without(full, at)
            yield Change(f"{where}: unset, then set", full, ((rest, False), (other, False), (full, True)), where)
            yield Change(f"{where}: set, then unset", rest, ((full, False), (rest, True)), where)


def _another(schema: Spec, now: Any) -> Any:
    """A good value that is not `now`, nor, where there is none now, the default."""
    kind = schema.get("type")
    now = schema.get("default") if now is None else now
    if "enum" in schema:
        return next(value for value in schema["enum"] if value != now)
    if kind in ("integer", "number"):
        return next(value for value in (schema["maximum"], schema["minimum"]) if value != now)
    if kind == "boolean":
        return not now
    if kind == "object":
        return {"gpu": "other"}
    if kind == "array":
        return [{"operator": "Exists"}]
    return {"8Gi": "9Gi", "2": "3"}.get(now, "other")


def _at(spec: Spec, path: Path) -> Any:
    inner: Any = spec
    for part in path:
        inner = inner.get(part) if isinstance(inner, dict) else None
    return inner
