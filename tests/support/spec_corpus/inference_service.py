"""InferenceService's corpus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_tuning.api import crd
from llm_tuning.api.inference_service import InferenceService
from tests.support.spec_corpus import fragments
from tests.support.spec_corpus.corpus import Change, Corpus, Spec, Texts, Together

MINIMAL: Spec = {"model": {"path": "base/tiny"}, "volume": {"claimName": "tuning"}}


def _target(model_id: str = "ft_a", **others: Any) -> Spec:
    return {"modelId": model_id, **others}


def _routes(*names: str, targets: list[Any] | None = None) -> Spec:
    """Routes of these names, each with these targets."""
    return {"routes": [{"name": name, "targets": [_target()] if targets is None else targets} for name in names]}


FULL: Spec = {
    "model": {"path": "base/tiny", "name": "tiny-chat"},
    "volume": {"claimName": "tuning"},
    "routes": [
        {"name": "faq", "targets": [{"tuningJob": "faq-v1", "weight": 90}, {"tuningJob": "faq-v2", "weight": 10}]},
        {"name": "org/support:v1", "targets": [_target()]},
    ],
    "replicas": 2,
    "resources": {"gpus": 2, "cpu": 4, "memory": "32Gi", **fragments.RESOURCES_FULL},
    "vllm": fragments.VLLM_FULL,
    "rollout": {"maxSurge": 0, "maxUnavailable": 1},
    "apiKeySecret": {"name": "llm-tuning-faq", "key": "token"},
}
SURROUNDINGS: dict[str, Spec] = {
    "model.path": {"model": {}},
    "model.uri": {"model": {}},
    "model.credentialsSecret": {"model": {"uri": "hf://a/b", "credentialsSecret": {"name": "llm-tuning-hub"}}},
    "routes": _routes("support"),
    "routes[0].targets[0].tuningJob": _routes("support", targets=[{}]),
    "routes[0].targets[0].modelId": _routes("support", targets=[{}]),
    "routes[0].targets[0].weight": _routes("support", targets=[_target(), _target("ft_b")]),
    "rollout.maxSurge": {"rollout": {"maxUnavailable": 1}},
    **fragments.API_KEY_SURROUNDINGS,
    **fragments.RESOURCES_SURROUNDINGS,
}
MODEL_NAMES: Texts = (
    ["a", "0", "A", "org/faq", "org/faq:v1.2_x", "a//b", "a..b"],
    ["/a", "a/", "-a", "a-", ".a", "_a", ":a", "a:", "a b", "a\n", "ä", "a\\b"],
)
PATTERNS: dict[str, Texts] = {
    "model.path": fragments.PATHS,
    "model.uri": fragments.MODEL_URIS,
    "model.credentialsSecret.name": fragments.SECRETS,
    "model.name": MODEL_NAMES,
    "volume.claimName": fragments.NAMES,
    "routes[0].name": MODEL_NAMES,
    "routes[0].targets[0].tuningJob": fragments.NAMES,
    "routes[0].targets[0].modelId": fragments.MODEL_IDS,
    **fragments.RESOURCES,
    **fragments.API_KEY,
}


def _named(path: str, name: str | None, *routes: str) -> Spec:
    return {"model": {"path": path, **({"name": name} if name else {})}, **_routes(*routes)}


def _most() -> Spec:
    """The dearest spec for the server's rules, which have a budget: all as many and as long as may be."""
    adapters = [_target(f"{n:x<128}", weight=n // 15) for n in range(16)]
    return {
        "model": {"path": "/".join(["x" * 127] * 8) + "y"},
        **_routes(*(f"{n:x<128}" for n in range(64)), targets=adapters),
    }


TOGETHER: list[Together] = [
    ("two-routes", _routes("a", "b"), True, ""),
    ("no-base", {"model": {}}, False, "model"),
    ("both-bases", {"model": {"path": "a", "uri": "hf://a/b"}}, False, "model"),
    ("credentials-of-a-path", {"model": {"path": "a", "credentialsSecret": {"name": "llm-tuning-a"}}}, False, "model"),
    ("route-as-the-uri", {"model": {"uri": "hf://a/b@main"}, **_routes("c", "b")}, False, "routes"),
    ("route-as-the-owner", {"model": {"uri": "hf://a/b@main"}, **_routes("a", "main")}, True, ""),
    ("route-as-the-uri-of-a-named-base", {"model": {"uri": "hf://a/b", "name": "c"}, **_routes("b")}, True, ""),
    ("names-that-differ-in-case", _routes("faq", "FAQ"), True, ""),
    ("one-name-twice", _routes("a", "a"), False, "routes[1]"),
    ("one-name-again", _routes("a", "b", "a"), False, "routes[2]"),
    ("route-as-the-base", _named("base/tiny", None, "tiny"), False, "routes"),
    ("route-as-the-base-without-folder", _named("tiny", None, "tiny"), False, "routes"),
    ("second-route-as-the-base", _named("a/b", None, "c", "b"), False, "routes"),
    ("route-as-the-base's-path", _named("a/b", None, "a/b"), False, "routes"),
    ("route-as-the-base's-folder", _named("a/b", None, "a"), True, ""),
    ("route-as-an-ending-of-the-base", _named("a/bc", None, "c"), True, ""),
    ("route-as-the-base-in-another-case", _named("a/b", None, "B"), True, ""),
    ("route-as-the-base's-given-name", _named("a/b", "c", "c"), False, "routes"),
    ("route-as-the-base's-given-name-with-slash", _named("a/b", "c/d", "c/d"), False, "routes"),
    ("route-as-an-ending-of-the-given-name", _named("a/b", "c/d", "d"), True, ""),
    ("route-as-the-path-of-a-named-base", _named("a/b", "c", "b"), True, ""),
    ("name-as-the-path-says", _named("a/b", "b", "b"), False, "routes"),
    ("null-name-and-route-as-the-base", {"model": {"path": "a/b", "name": None}, **_routes("b")}, False, "routes"),
    ("null-route-name", {"routes": [{"name": None, "targets": [_target()]}]}, False, "routes[0].name"),
    (
        "two-routes-without-name",
        {"routes": [{"targets": [_target()]}, {"targets": [_target()]}]},
        False,
        "routes",
    ),
    ("no-weight", _routes("a", targets=[_target(weight=0)]), False, "routes[0]"),
    ("no-weight-at-all", _routes("a", targets=[_target(weight=0), _target("ft_b", weight=0)]), False, "routes[0]"),
    ("some-weight", _routes("a", targets=[_target(weight=0), _target("ft_b", weight=1)]), True, ""),
    ("null-weight", _routes("a", targets=[_target(weight=None)]), True, ""),
    ("no-weight-and-the-default", _routes("a", targets=[_target(weight=0), _target("ft_b")]), True, ""),
    ("one-adapter-twice", _routes("a", targets=[_target(), _target()]), True, ""),
    ("both-adapter-names", _routes("a", targets=[_target(tuningJob="b")]), False, "routes[0].targets[0]"),
    ("no-adapter-name", _routes("a", targets=[{"weight": 1}]), False, "routes[0].targets[0]"),
    ("no-second-adapter-name", _routes("a", targets=[_target(), {}]), False, "routes[0].targets[1]"),
    ("null-beside-an-adapter-name", _routes("a", targets=[_target(tuningJob=None)]), True, ""),
    ("no-step-of-the-rollout", {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, False, "rollout"),
    ("no-surge-and-the-default", {"rollout": {"maxSurge": 0}}, False, "rollout"),
    ("no-surge-and-null", {"rollout": {"maxSurge": 0, "maxUnavailable": None}}, False, "rollout"),
    ("null-surge-is-the-default", {"rollout": {"maxSurge": None, "maxUnavailable": 0}}, True, ""),
    ("no-surge-but-a-gap", {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}, True, ""),
    ("surge-as-percentage", {"rollout": {"maxSurge": "25%"}}, False, "rollout.maxSurge"),
    ("a-key-without-secret", {"apiKeySecret": {"key": "apiKey"}}, False, "apiKeySecret.name"),
    ("no-replica", {"replicas": 0}, True, ""),
    ("beyond-64-bits", {"replicas": 10**20}, False, "replicas"),
    ("null-deep", {"vllm": {"maxLoras": None, "dtype": None}, "rollout": None, "resources": None}, True, ""),
    ("as-much-as-may-be", _most(), True, ""),
    *fragments.RESOURCES_TOGETHER,
    *fragments.VLLM_TOGETHER,
]


def _changes() -> Iterator[Change]:
    yield Change("all, then nothing, then all", FULL, ((MINIMAL, True), (FULL, True)))
    canary, rolled_back, moved = (
        {**MINIMAL, **_routes(*names, targets=[_target(weight=old), _target("ft_b", weight=new)])}
        for names, old, new in ((("a", "b"), 90, 10), (("a", "b"), 1, 0), (("b", "c", "a"), 0, 1))
    )
    yield Change("weights and routes", canary, ((rolled_back, True), (moved, True), (canary, True)))
    yield Change(
        "another base that has a route's name",
        {**MINIMAL, **_routes("other")},
        (({**_named("base/other", None, "other"), "volume": {"claimName": "tuning"}}, False), (MINIMAL, True)),
        "routes",
    )
    yield Change(
        "weights that go", canary, (({**MINIMAL, **_routes("a", targets=[_target(weight=0)])}, False),), "routes[0]"
    )
    yield Change(
        "a surge that goes", MINIMAL, (({**MINIMAL, "rollout": {"maxSurge": 0}}, False), (FULL, True)), "rollout"
    )


INFERENCE_SERVICE = Corpus(
    kind=crd.INFERENCE_SERVICE,
    model=InferenceService,
    minimal=MINIMAL,
    full=FULL,
    surroundings=SURROUNDINGS,
    patterns=PATTERNS,
    elements={
        **fragments.RESOURCES_ELEMENTS,
        "routes": lambda n: {"name": f"route-{n}", "targets": [_target()]},
        "routes[0].targets": lambda n: _target(f"ft_{n}"),
    },
    one_of={
        **{f"routes[0].targets[0].{name}": "routes[0].targets[0]" for name in ("tuningJob", "modelId")},
        **{f"model.{name}": "model" for name in ("path", "uri")},
    },
    together=TOGETHER,
    read=["replicas", "routes[0].targets[0].weight", "rollout.maxSurge", "rollout.maxUnavailable"],
    names=(["x" * 40, "a", "faq-2"], ["x" * 41, "0a", "a.b", "A", "a_b", "-a", "a-", "a/b"]),
    further_changes=_changes,
)
