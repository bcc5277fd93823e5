"""TuningJob's corpus."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic.alias_generators import to_camel

from llm_tuning.api import crd
from llm_tuning.api.tuning_job import MUTABLE, TuningJob
from tests.support.spec_corpus import fragments
from tests.support.spec_corpus.corpus import Change, Corpus, Spec, Texts, Together
from tests.support.spec_corpus.fragments import below
from tests.support.spec_corpus.immutable import Immutable

MINIMAL: Spec = {
    "model": {"path": "base/tiny"},
    "dataset": {"path": "datasets/faq.json"},
    "volume": {"claimName": "tuning"},
}
FULL: Spec = {
    **MINIMAL,
    "mode": "ppo",
    "model": {"path": "base/tiny", "adapter": {"tuningJob": "earlier"}, "quantization": "none"},
    "dataset": {**MINIMAL["dataset"], "evaluation": "datasets/faq-eval.json", "columns": {"prompt": "question"}},
    "training": {
        "maxSteps": 10,
        "learningRate": 5e-5,
        "maxTokensPerPass": 4096,
        "evalSteps": 10,
        "learnReasoning": False,
    },
    "tracking": {"uri": "http://mlflow:5000", "credentialsSecret": {"name": "llm-tuning-mlflow"}},
    "resources": fragments.RESOURCES_FULL,
    "queueName": "team-a",
    "activeDeadlineSeconds": 3600,
    "ttlSecondsAfterFinished": 60,
    "serve": {
        "name": "faq",
        "resources": {**fragments.RESOURCES_FULL},  # a dict of its own: it takes no nodes
        "vllm": fragments.VLLM_FULL,
        "apiKeySecret": {"name": "llm-tuning-faq"},
    },
}
CONFIG_MAP: Spec = {"dataset": {"configMap": {"name": "faq", "key": "faq.json"}}}
MODEL_URI: Spec = {"model": {"uri": "hf://a/b", "credentialsSecret": {"name": "llm-tuning-hub"}}}
DATASET_URI: Spec = {"dataset": {"uri": "s3://bucket/faq.json", "credentialsSecret": {"name": "llm-tuning-s3"}}}


def _serving(spec: Spec) -> Spec:
    return {"serve": {"name": "faq", **spec}}


def _divided(sharding: str, quantization: str) -> Spec:
    return {"training": {"sharding": sharding}, "model": {"path": "a", "quantization": quantization}}


SERVED_SURROUNDINGS = {**fragments.RESOURCES_SURROUNDINGS, **fragments.API_KEY_SURROUNDINGS}
SURROUNDINGS: dict[str, Spec] = {
    **{mode: {"mode": mode} for mode in ("ppo", "dpo", "kto")},
    "model.adapter.tuningJob": {"model": {"path": "base/tiny", "adapter": {}}},
    "model.adapter.modelId": {"model": {"path": "base/tiny", "adapter": {}}},
    "model.adapter": {"model": {"path": "base/tiny", "adapter": {"modelId": "ft_sft_tiny_1_abcdef"}}},
    "model.path": {"model": {}},
    "model.uri": {"model": {}},
    "model.credentialsSecret": MODEL_URI,
    "dataset.uri": {"dataset": {}},
    "dataset.credentialsSecret": DATASET_URI,
    "dataset.configMap": CONFIG_MAP,
    "tracking.credentialsSecret": {"tracking": {"credentialsSecret": {"name": "llm-tuning-mlflow"}}},
    **fragments.RESOURCES_SURROUNDINGS,
    "serve": _serving({}),
    **below("serve", {path: _serving(spec) for path, spec in SERVED_SURROUNDINGS.items()}),
}
PATTERNS: dict[str, Texts] = {
    "model.path": fragments.PATHS,
    "model.uri": fragments.MODEL_URIS,
    "model.credentialsSecret.name": fragments.SECRETS,
    "dataset.uri": fragments.DATASET_URIS,
    "dataset.credentialsSecret.name": fragments.SECRETS,
    "dataset.path": fragments.PATHS,
    "dataset.evaluation": fragments.PATHS,
    "model.adapter.tuningJob": fragments.NAMES,
    "model.adapter.modelId": fragments.MODEL_IDS,
    "dataset.configMap.name": fragments.NAMES,
    "dataset.configMap.key": fragments.KEYS,
    "volume.claimName": fragments.NAMES,
    "lora.targetModules": (["q_proj", "q_proj,v_proj", "layers.0.q_proj"], ["q proj", "q_proj,", ",", "a,,b", "a\n"]),
    "tracking.credentialsSecret.name": fragments.SECRETS,
    **fragments.RESOURCES,
    "queueName": fragments.LABELS,
    "serve.name": fragments.SERVICES,
    **below("serve", {**fragments.RESOURCES, **fragments.API_KEY}),
}
TOGETHER: list[Together] = [
    (
        "both-adapter-names",
        {"model": {"path": "a", "adapter": {"tuningJob": "a", "modelId": "b"}}},
        False,
        "model.adapter",
    ),
    ("no-adapter-name", {"model": {"path": "a", "adapter": {}}}, False, "model.adapter"),
    ("both-datasets", {"dataset": {"path": "a", "configMap": {"name": "a", "key": "b"}}}, False, "dataset"),
    ("no-dataset", {"dataset": {}}, False, "dataset"),
    ("no-base", {"model": {}}, False, "model"),
    ("both-bases", {"model": {"path": "a", "uri": "hf://a/b"}}, False, "model"),
    ("credentials-of-a-path", {"model": {"path": "a", "credentialsSecret": {"name": "llm-tuning-a"}}}, False, "model"),
    ("uri-beside-a-dataset", {"dataset": {"path": "a", "uri": "https://h/a"}}, False, "dataset"),
    ("three-datasets", {"dataset": {"path": "a", "uri": "https://h/a", **CONFIG_MAP["dataset"]}}, False, "dataset"),
    ("null-beside-a-base", {"model": {"path": None, "uri": "hf://a/b"}}, True, ""),
    *[
        (
            f"serve-{name}-of-{uri}",
            {"model": {"uri": uri}, **_serving({"name": name})},
            good,
            "" if good else "serve.name",
        )
        for uri, name, good in [
            ("hf://a/b", "b", False),
            ("hf://a/b@main", "b", False),
            ("s3://bucket/x/b/", "b", False),
            ("hf://a/b", "a", True),
            ("hf://a/b@main", "main", True),
            ("hf://a/xb", "b", True),
            ("s3://bucket/b@x/c", "b", True),
        ]
    ],
    ("null-beside-a-dataset", {"dataset": {"path": "a", "configMap": None}}, True, ""),
    *[
        (f"dataset: {name}", {"dataset": {**MINIMAL["dataset"], **change}}, good, at)
        for name, change, good, at in [
            ("a split to evaluate on", {"evaluation": "#validation"}, True, ""),
            ("a split of another file", {"evaluation": "datasets/all.json#validation"}, True, ""),
            ("columns", {"columns": {"prompt": "question", "output": "the answer, in words"}}, True, ""),
            ("no columns", {"columns": {}}, False, "dataset.columns"),
            ("an empty column", {"columns": {"prompt": ""}}, False, "dataset.columns.prompt"),
            ("a column without a field", {"columns": {"": "question"}}, False, "dataset.columns"),
            ("a field in capitals", {"columns": {"Prompt": "question"}}, False, "dataset.columns"),
            ("a column with a line break", {"columns": {"prompt": "a\nb"}}, False, "dataset.columns.prompt"),
            ("a column for two fields", {"columns": {"prompt": "a", "output": "a"}}, False, "dataset.columns"),
        ]
    ],
    ("a-split-of-a-config-map", {"dataset": {**CONFIG_MAP["dataset"], "evaluation": "#validation"}}, True, ""),
    (
        "evaluation-and-a-fraction",
        {"dataset": {**MINIMAL["dataset"], "evaluation": "a"}, "training": {"evalFraction": 0.1}},
        False,
        "training.evalFraction",
    ),
    (
        "evaluation-and-no-fraction",
        {"dataset": {**MINIMAL["dataset"], "evaluation": "a"}, "training": {"evalFraction": 0}},
        False,
        "training.evalFraction",
    ),
    (
        "evaluation-and-the-default-fraction",
        {"dataset": {**MINIMAL["dataset"], "evaluation": "a"}, "training": {"evalFraction": 0.05}},
        True,
        "",
    ),
    ("ppo-setting-in-sft", {"ppo": {"klCoef": 0.1}}, False, "ppo.klCoef"),
    ("ppo-default-in-sft", {"ppo": {"klCoef": 0.05, "valueLossCoef": 0.5}}, True, ""),
    ("dpo-setting-in-kto", {"mode": "kto", "dpo": {"beta": 0.5}}, False, "dpo.beta"),
    ("kto-setting-in-dpo", {"mode": "dpo", "kto": {"desirableWeight": 2}}, False, "kto.desirableWeight"),
    ("ppo-setting-in-ppo", {"mode": "ppo", "ppo": {"klCoef": 1}}, True, ""),
    *fragments.RESOURCES_TOGETHER,
    ("beyond-64-bits", {"retries": 10**20}, False, "retries"),
    ("reasoning-neither-learned-nor-not", {"training": {"learnReasoning": "some"}}, False, "training.learnReasoning"),
    *[
        (f"sharding-{sharding}-in-{bits}", _divided(sharding, bits), good, "" if good else "training.sharding")
        for sharding, bits, good in [
            ("full", "4bit", False),
            ("full", "none", True),
            ("none", "4bit", True),
            ("auto", "4bit", True),
        ]
    ],
    ("null-deep", {"training": {"seed": None, "learningRate": None}, "lora": None}, True, ""),
    ("serve-as-the-base", _serving({"name": "tiny"}), False, "serve.name"),
    ("serve-as-the-base-without-folder", {"model": {"path": "a"}, **_serving({"name": "a"})}, False, "serve.name"),
    ("serve-as-a-part-of-the-base", _serving({"name": "base"}), True, ""),
    ("serve-as-an-ending-of-the-base", _serving({"name": "iny"}), True, ""),
    ("serve-without-replicas", _serving({"replicas": 0}), True, ""),
    ("serve-nothing-named", {"serve": {}}, False, "serve.name"),
    ("serve-with-routes", _serving({"routes": []}), False, "serve.routes"),
    ("serve-with-rollout", _serving({"rollout": {"maxSurge": 1}}), False, "serve.rollout"),
    *[
        (f"serve: {name}", _serving(change), good, f"serve.{at}" if at else "")
        for name, change, good, at in [*fragments.RESOURCES_TOGETHER, *fragments.VLLM_TOGETHER]
    ],
]


def _changes() -> Iterator[Change]:
    yield from Immutable(
        TUNING_JOB.spec,
        FULL,
        skipped=[
            *map(to_camel, MUTABLE),
            *("dataset.path", "dataset.configMap", "dataset.uri", "dataset.credentialsSecret"),
            *("model.path", "model.uri", "model.credentialsSecret", "kto.threshold"),
        ],
        others={
            "model.adapter": {"modelId": "ft_sft_tiny_1_abcdef"},
            "tracking.credentialsSecret": {"name": "llm-tuning-other"},
            "serve": {"name": "other"},
        },
    ).changes()
    rated, otherwise = ({**MINIMAL, "mode": "kto", "kto": {"threshold": at}} for at in (1.5, 2.5))
    labelled = {**MINIMAL, "mode": "kto"}
    yield Change("kto.threshold: changed, then back", rated, ((otherwise, False), (rated, True)), "kto.threshold")
    yield Change("kto.threshold: unset, then set", rated, ((labelled, False), (rated, True)), "kto.threshold")
    yield Change("kto.threshold: set, then unset", labelled, ((rated, False), (labelled, True)), "kto.threshold")
    other = {**MINIMAL, **CONFIG_MAP}
    yield Change("dataset: path to configMap", MINIMAL, ((other, False), (MINIMAL, True)), "dataset.path")
    yield Change("dataset: configMap to path", other, ((MINIMAL, False), (other, True)), "dataset.path")
    fetched = {**MINIMAL, **MODEL_URI}
    moved = {**MINIMAL, "model": {**MODEL_URI["model"], "uri": "hf://a/b@main"}}
    yield Change("model: path to uri", MINIMAL, ((fetched, False), (MINIMAL, True)), "model.path")
    yield Change("model: uri to path", fetched, ((MINIMAL, False), (fetched, True)), "model.path")
    for group, spec in (("model", MODEL_URI), ("dataset", DATASET_URI)):
        applied = {**MINIMAL, **spec}
        other, none = (
            {**MINIMAL, group: {"uri": spec[group]["uri"], **secret}}
            for secret in ({"credentialsSecret": {"name": "llm-tuning-other"}}, {})
        )
        at = f"{group}.credentialsSecret"
        yield Change(f"{at}: changed, then back", applied, ((other, False), (applied, True)), at)
        yield Change(f"{at}: set, then unset", applied, ((none, False), (applied, True)), at)
        yield Change(f"{at}: unset, then set", none, ((applied, False), (none, True)), at)
    yield Change("model: another revision", fetched, ((moved, False), (fetched, True)), "model.uri")
    yield from _of_serve()
    yield from _allowed()


def _of_serve() -> Iterator[Change]:
    """A group that may be left out is compared as a whole."""
    served, full = {**MINIMAL, **_serving({})}, FULL["serve"]
    for name, change in {
        "replicas": {"replicas": 2},
        "a resource": {"resources": {**fragments.RESOURCES_FULL, "gpus": 2}},
        "cores": {"resources": {**fragments.RESOURCES_FULL, "cpu": 3}},
        "no place": {"resources": {}},
        "another place": {"resources": {**fragments.RESOURCES_FULL, "nodeSelector": {"gpu": "other"}}},
        "a flag": {"vllm": {**fragments.VLLM_FULL, "maxLoras": 5}},
        "no flag": {"vllm": {}},
        "another key": {"apiKeySecret": {"name": "llm-tuning-faq", "key": "other"}},
        "no key": {"apiKeySecret": None},
    }.items():
        changed = {**FULL, "serve": {**full, **change}}
        yield Change(f"serve: {name}, then back", FULL, ((changed, False), (FULL, True)), "serve")
    written_out = _serving({"replicas": 1, "resources": {"gpus": 1, "memory": "16Gi"}, "vllm": {}})
    yield Change("serve: defaults written out", served, (({**MINIMAL, **written_out}, True), (served, True)))
    quoted, plain = ({**MINIMAL, **_serving({"resources": {"cpu": cores}})} for cores in ("2", 2))
    yield Change("serve: cores as a number, then quoted", served, ((plain, True), (quoted, True), (plain, True)))


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


TUNING_JOB = Corpus(
    kind=crd.TUNING_JOB,
    model=TuningJob,
    minimal=MINIMAL,
    full=FULL,
    surroundings=SURROUNDINGS,
    patterns=PATTERNS,
    elements={**fragments.RESOURCES_ELEMENTS, **below("serve", fragments.RESOURCES_ELEMENTS)},
    one_of={
        "model.path": "model",
        "model.uri": "model",
        "dataset.uri": "dataset",
        "dataset.path": "dataset",
        "dataset.configMap": "dataset",
        "model.adapter.tuningJob": "model.adapter",
        "model.adapter.modelId": "model.adapter",
    },
    together=TOGETHER,
    read=["resources.nodes"],
    names=(["x" * 50, "a.b", "0"], ["x" * 51, "A", "a_b", "-a", "a/b"]),
    further_names=[
        ({"resources": {"nodes": 2}}, (["x" * 50, "a", "faq-2"], ["x" * 51, "a.b", "0", "0a"])),
        ({"resources": {}}, (["a.b", "0"], [])),
    ],
    further_changes=_changes,
)
