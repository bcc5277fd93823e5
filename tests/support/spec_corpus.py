"""Good and bad specs of a TuningJob, made by walking the CRD's schema, and changes to an applied one.

The API server and pydantic are asked about each; the client refuses and takes what pydantic does, since it uses the
same models. What bounds and types say is derived; what patterns mean and what fields mean together is written by hand.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from llm_tuning.api.crd import build_schema
from llm_tuning.api.tuning_job import MUTABLE

SPEC = build_schema()["properties"]["spec"]
Path = tuple[str | int, ...]
Spec = dict[str, Any]

MINIMAL: Spec = {
    "model": {"path": "base/tiny"},
    "dataset": {"path": "datasets/faq.json"},
    "volume": {"claimName": "tuning"},
}
FULL: Spec = {
    **MINIMAL,
    "mode": "ppo",
    "model": {"path": "base/tiny", "adapter": {"tuningJob": "earlier"}, "quantization": "none"},
    "training": {"maxSteps": 10, "learningRate": 5e-5, "maxTokensPerPass": 4096, "evalSteps": 10},
    "tracking": {"uri": "http://mlflow:5000", "credentialsSecret": {"name": "llm-tuning-mlflow"}},
    "resources": {
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60}],
        "priorityClassName": "low",
    },
    "queueName": "team-a",
    "activeDeadlineSeconds": 3600,
    "ttlSecondsAfterFinished": 60,
}
"""Everything set that has no default, so that each can be taken away."""

SURROUNDINGS: dict[str, Spec] = {
    "ppo": {"mode": "ppo"},
    "model.adapter.tuningJob": {"model": {"path": "base/tiny", "adapter": {}}},
    "model.adapter.modelId": {"model": {"path": "base/tiny", "adapter": {}}},
    "model.adapter": {"model": {"path": "base/tiny", "adapter": {"modelId": "ft_sft_tiny_1_abcdef"}}},
    "dataset.configMap": {"dataset": {"configMap": {"name": "faq", "key": "faq.json"}}},
    "tracking.credentialsSecret": {"tracking": {"credentialsSecret": {"name": "llm-tuning-mlflow"}}},
    "resources.tolerations": {"resources": {"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}},
    "resources.tolerations[0].key": {"resources": {"tolerations": [{"operator": "Exists"}]}},
    "resources.tolerations[0].operator": {"resources": {"tolerations": [{"key": "gpu"}]}},
}
"""What else has to be in a spec for the field to be allowed (the longest path that fits counts)."""

NAMES = (["a", "a-b.c", "0"], ["A", "-a", "a-", "a_b", "a..b", "a/b", "a b", "a\n", "ä", ".a"])
LABELS = (["a", "team-a", "0"], ["a.b", "A", "-a", "a-", "a_b", "a b", "a\n"])
PATHS = (
    ["a", "base/qwen3-0.6b", ".hidden/x", "..a/b", "a/...", "a b/ü", "a..b/c.."],
    ["/a", "a/", "a//b", "..", "../a", "a/..", "a/../b", ".", "a/.", "./a", "a\0b", "a\nb", "a\n", "/"],
)
PATTERNS: dict[str, tuple[list[str], list[str]]] = {
    "model.path": PATHS,
    "dataset.path": PATHS,
    "model.adapter.tuningJob": NAMES,
    "model.adapter.modelId": (["ft_sft_tiny_1_abcdef", "A.b-c_9"], ["a/b", "..", "-a", "a\n", ".work", "a b", "ä"]),
    "dataset.configMap.name": NAMES,
    "dataset.configMap.key": (["faq.json", "A_b-1.jsonl"], ["a/b", "a b", "..", "a\n"]),
    "volume.claimName": NAMES,
    "lora.targetModules": (["q_proj", "q_proj,v_proj", "layers.0.q_proj"], ["q proj", "q_proj,", ",", "a,,b", "a\n"]),
    "tracking.credentialsSecret.name": (
        ["llm-tuning-a", "llm-tuning-mlflow.eu"],
        ["mlflow", "llm-tuning-", "llm-tuning", "xllm-tuning-a", "llm-tuning-A", "llm-tuning--a", "llm-tuning-a..b"],
    ),
    "resources.cpu": (
        ["1", "16", "0.5", "1.25", "500m"],
        ["0", "0.0", "-1", "1Gi", "1.", ".5", "1e3", "m", "0m", "1 ", "99999"],
    ),
    "resources.memory": (
        ["512Mi", "8Gi", "1.5Gi", "2T"],
        ["8", "0Gi", "-8Gi", "8GB", "8gi", "8 Gi", "512m", "Gi", "1e9"],
    ),
    "resources.tolerations[0].key": (["gpu", "nvidia.com/gpu"], ["", "a b", "/gpu", "Nvidia.com/gpu", "a/b/c"]),
    "resources.tolerations[0].value": (["", "yes", "a.b_c-d"], ["a b", "-a", "a/b"]),
    "resources.priorityClassName": NAMES,
    "queueName": LABELS,
}

TOGETHER: list[tuple[str, Spec, bool, str]] = [
    (
        "both-adapter-names",
        {"model": {"path": "a", "adapter": {"tuningJob": "a", "modelId": "b"}}},
        False,
        "model.adapter",
    ),
    ("no-adapter-name", {"model": {"path": "a", "adapter": {}}}, False, "model.adapter"),
    ("both-datasets", {"dataset": {"path": "a", "configMap": {"name": "a", "key": "b"}}}, False, "dataset"),
    ("no-dataset", {"dataset": {}}, False, "dataset"),
    ("null-beside-a-dataset", {"dataset": {"path": "a", "configMap": None}}, True, ""),
    ("ppo-setting-in-sft", {"ppo": {"klCoef": 0.1}}, False, "ppo.klCoef"),
    ("ppo-default-in-sft", {"ppo": {"klCoef": 0.05, "valueLossCoef": 0.5}}, True, ""),
    ("ppo-setting-in-ppo", {"mode": "ppo", "ppo": {"klCoef": 1}}, True, ""),
    ("tolerate-all", {"resources": {"tolerations": [{"operator": "Exists"}]}}, True, ""),
    ("no-key-but-equal", {"resources": {"tolerations": [{"value": "a"}]}}, False, "resources.tolerations[0]"),
    (
        "value-with-exists",
        {"resources": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        False,
        "resources.tolerations[0]",
    ),
    (
        "seconds-without-no-execute",
        {"resources": {"tolerations": [{"key": "a", "tolerationSeconds": 1}]}},
        False,
        "resources.tolerations[0]",
    ),
    ("null-label", {"resources": {"nodeSelector": {"gpu": None}}}, True, ""),
    ("no-toleration", {"resources": {"tolerations": [None]}}, False, "resources.tolerations[0]"),
    ("bad-label-key", {"resources": {"nodeSelector": {"a b": "c"}}}, False, "resources.nodeSelector"),
    ("good-label-key", {"resources": {"nodeSelector": {"node.kubernetes.io/instance-type": "a.b"}}}, True, ""),
    ("bad-label-value", {"resources": {"nodeSelector": {"a": "b c"}}}, False, "resources.nodeSelector"),
    ("cores-as-number", {"resources": {"cpu": 4}}, True, ""),
    ("cores-as-whole-float", {"resources": {"cpu": 2.0}}, True, ""),
    ("cores-as-float", {"resources": {"cpu": 0.5}}, False, "resources.cpu"),
    ("no-cores", {"resources": {"cpu": 0}}, False, "resources.cpu"),
    ("too-many-cores", {"resources": {"cpu": 10**5}}, False, "resources.cpu"),
    ("beyond-64-bits", {"retries": 10**20}, False, "retries"),
    ("null-deep", {"training": {"seed": None, "learningRate": None}, "lora": None}, True, ""),
    ("unknown-null", {"foo": None}, False, "foo"),
]


@dataclass(frozen=True)
class Case:
    """A spec, whether it is a good one, and else the field that every refusal has to name."""

    name: str
    spec: Spec
    good: bool
    field: str = ""


def cases() -> list[Case]:
    """All of them; names are unique."""
    found = [Case("minimal", MINIMAL, True), Case("full", FULL, True), *_walk(SPEC, ())]
    found += [Case(name, {**MINIMAL, **change}, good, field) for name, change, good, field in TOGETHER]
    unique = {case.name: case for case in found}
    assert all(unique[case.name] == case for case in found)
    return list(unique.values())


def _walk(schema: Spec, path: Path) -> Iterator[Case]:
    for name, field in schema.get("properties", {}).items():
        at = (*path, name)
        yield from _of_field(field, at, required=name in schema.get("required", []))
        if "properties" in field:
            yield from _walk(field, at)
        elif "properties" in field.get("items", {}):
            yield from _walk(field["items"], (*at, 0))
    if "properties" in schema:
        yield _case("unknown", (*path, "surprise"), 1, good=False)
        for name in [n for n in schema["properties"] if n != n.lower()][:1]:
            yield _case("snake-case", (*path, re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", name)), 1, good=False)


def _of_field(field: Spec, at: Path, *, required: bool) -> Iterator[Case]:
    if required:
        yield Case(f"{shown(at)}: missing", _without(_surroundings(at), at), False, shown(at))
    if shown(at) not in ("dataset.path", "model.adapter.tuningJob", "model.adapter.modelId"):
        alone = shown(at) == "dataset.configMap"  # without it there is no data set
        yield Case(
            f"{shown(at)}: null",
            _with(_surroundings(at), at, None),
            not required and not alone,
            "dataset" if alone else shown(at),
        )
    if "x-kubernetes-int-or-string" in field:
        wrong: list[Any] = [True, [], {}]
    else:
        wrong = {
            "integer": ["1", True, 1.5, []],
            "number": ["0.1", True, {}],
            "boolean": ["true", 0, "yes"],
            "string": [1, True, ["a"]],
            "object": [[], "x", 1],
            "array": [{}, "x"],
        }[field["type"]]
    for value in wrong:
        yield _case("wrong type", at, value, good=False)
    for value, good in _values(field, at):
        yield _case("", at, value, good=good)


def _values(field: Spec, at: Path) -> Iterator[tuple[Any, bool]]:
    kind = field.get("type")
    if kind in ("integer", "number"):
        step = 1 if kind == "integer" else 1e-3
        low, high = field["minimum"], field["maximum"]
        yield from [(low, True), (high, True), (low - step, False), (high + step, False)]
        yield (float(low), True) if kind == "integer" else (1, low <= 1 <= high)
        if kind == "number":
            yield 0, low <= 0
    elif kind == "boolean":
        yield from [(True, True), (False, True)]
    elif "enum" in field:
        yield from [(value, True) for value in field["enum"]]
        yield from [(field["enum"][0].swapcase(), False), ("", False)]
    elif kind == "string" or "x-kubernetes-int-or-string" in field:
        good, bad = PATTERNS[shown(at)] if "pattern" in field else (["a"], [])
        yield from [(value, True) for value in good] + [(value, False) for value in bad]
        if field.get("minLength") and "" not in bad:
            yield "", False
        yield from _lengths(field)
    elif kind == "object" and "maxProperties" in field:
        yield from [({f"k{i}": "v" for i in range(field["maxProperties"] + more)}, not more) for more in (0, 1)]
    elif kind == "array":
        yield from [([{"operator": "Exists"}] * (field["maxItems"] + more), not more) for more in (0, 1)]


def _lengths(field: Spec) -> Iterator[tuple[str, bool]]:
    start = "llm-tuning-" if "llm-tuning-" in field.get("pattern", "") else ""
    text = start + "a" * (field["maxLength"] - len(start))
    if re.search(field.get("pattern", ""), text):
        yield from [(text, True), (text + "a", False)]


def _case(what: str, at: Path, value: Any, *, good: bool) -> Case:
    text = json.dumps(value, ensure_ascii=True)
    text = text if len(text) <= 40 else f"{text[:20]}... ({len(value)})"
    name = f"{shown(at)}: {what} {text}".replace(":  ", ": ")
    return Case(name, _with(_surroundings(at), at, value), good, "" if good else shown(at))


def shown(path: Path) -> str:
    """`resources.tolerations[0].key`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _surroundings(at: Path) -> Spec:
    fitting = [path for path in SURROUNDINGS if shown(at) == path or shown(at).startswith((f"{path}.", f"{path}["))]
    return copy.deepcopy({**MINIMAL, **(SURROUNDINGS[max(fitting, key=len)] if fitting else {})})


def _with(spec: Spec, path: Path, value: Any) -> Spec:
    result = copy.deepcopy(spec)
    inner: Any = result
    for part in path[:-1]:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
    inner[path[-1]] = value
    return result


def _without(spec: Spec, path: Path) -> Spec:
    result = copy.deepcopy(spec)
    inner: Any = result
    for part in path[:-1]:
        inner = inner[part]
    inner.pop(path[-1], None)
    return result


@dataclass(frozen=True)
class Change:
    """Specs that are put one after the other over an applied one, and whether each is taken."""

    name: str
    applied: Spec
    steps: tuple[tuple[Spec, bool], ...]
    field: str = ""


def changes() -> list[Change]:
    """Each field changed and changed back, set where it was not, taken away where it was."""
    return [*_changes_of(SPEC, ()), *_allowed()]


def _changes_of(schema: Spec, path: Path) -> Iterator[Change]:
    for name, field in schema["properties"].items():
        at = (*path, name)
        always = name in schema.get("required", []) or "default" in field
        if "properties" in field and always:
            yield from _changes_of(field, at)
        elif shown(at) not in (*map(to_camel, MUTABLE), "dataset.path", "dataset.configMap"):
            yield from _changes_of_field(field, at, always=always)
    if path == ("dataset",):
        other = {**MINIMAL, "dataset": {"configMap": {"name": "faq", "key": "faq.json"}}}
        yield Change("dataset: path to configMap", MINIMAL, ((other, False), (MINIMAL, True)), "dataset.path")
        yield Change("dataset: configMap to path", other, ((MINIMAL, False), (other, True)), "dataset.path")


def _changes_of_field(field: Spec, at: Path, *, always: bool) -> Iterator[Change]:
    other, where = _with(FULL, at, _another(field, _at(FULL, at))), shown(at)
    yield Change(f"{where}: changed, then back", FULL, ((other, False), (FULL, True)), where)
    if not always:
        without = _without(FULL, at)
        yield Change(f"{where}: unset, then set", FULL, ((without, False), (other, False), (FULL, True)), where)
        yield Change(f"{where}: set, then unset", without, ((FULL, False), (without, True)), where)


def _another(field: Spec, now: Any) -> Any:
    """A good value that is not `now`, nor, where there is none now, the default."""
    if "properties" in field:
        only = {"adapter": {"modelId": "ft_sft_tiny_1_abcdef"}, "name": {"name": "llm-tuning-other"}}
        return only["name"] if "name" in field["properties"] else only["adapter"]
    kind = field.get("type")
    now = field.get("default") if now is None else now
    if "enum" in field:
        return next(value for value in field["enum"] if value != now)
    if kind in ("integer", "number"):
        return next(value for value in (field["maximum"], field["minimum"]) if value != now)
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


def _allowed() -> Iterator[Change]:
    yield Change("nothing", FULL, ((FULL, True),))
    yield Change("defaults written out", MINIMAL, (({**MINIMAL, "mode": "sft", "training": {"epochs": 1}}, True),))
    yield Change("null for a default", MINIMAL, (({**MINIMAL, "retries": None}, True),))
    # 1.0 for an integer is taken on creation only: the rules that compare old and new cannot read it.
    yield Change("0 for 0.0", MINIMAL, (({**MINIMAL, "training": {"weightDecay": 0}}, True),))
    quoted, plain = ({**MINIMAL, "resources": {"cpu": cores}} for cores in ("2", 2))
    yield Change("default cores as a number, then quoted", MINIMAL, ((plain, True), (quoted, True), (plain, True)))
    yield Change(
        "other cores as a number",
        plain,
        (({**MINIMAL, "resources": {"cpu": 3}}, False), (plain, True)),
        "resources.cpu",
    )
    suspended, short = {**MINIMAL, "suspend": True}, {**MINIMAL, "ttlSecondsAfterFinished": 1}
    yield Change("suspend and back", MINIMAL, ((suspended, True), (MINIMAL, True)))
    longer = {**MINIMAL, "ttlSecondsAfterFinished": 2}
    yield Change("ttl set, changed, unset", MINIMAL, ((short, True), (longer, True), (MINIMAL, True)))
    yield Change(
        "suspend with a change beside it",
        MINIMAL,
        (({**suspended, "retries": 4}, False), (suspended, True), ({**suspended, "retries": 4}, False)),
        "retries",
    )
