"""What more than one group of the specs has: names, paths, resources, engine flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tests.support.spec_corpus.corpus import Spec, Texts, Together

T = TypeVar("T")

NAMES: Texts = (["a", "a-b.c", "0"], ["A", "-a", "a-", "a_b", "a..b", "a/b", "a b", "a\n", "ä", ".a"])
LABELS: Texts = (["a", "team-a", "0"], ["a.b", "A", "-a", "a-", "a_b", "a b", "a\n"])
PATHS: Texts = (
    ["a", "base/qwen3-0.6b", ".hidden/x", "..a/b", "a/...", "a b/ü", "a..b/c.."],
    ["/a", "a/", "a//b", "..", "../a", "a/..", "a/../b", ".", "a/.", "./a", "a\0b", "a\nb", "a\n", "/"],
)
KEYS: Texts = (["faq.json", "A_b-1.jsonl"], ["a/b", "a b", "..", "a\n"])
MODEL_IDS: Texts = (["ft_sft_tiny_1_abcdef", "A.b-c_9"], ["a/b", "..", "-a", "a\n", ".work", "a b", "ä"])
SECRETS: Texts = (
    ["llm-tuning-a", "llm-tuning-mlflow.eu", "llm-tuning-operations"],
    [
        *("mlflow", "llm-tuning-", "llm-tuning", "xllm-tuning-a", "llm-tuning-A", "llm-tuning--a", "llm-tuning-a..b"),
        *("llm-tuning-operator-tls", "llm-tuning-operator"),
    ],
)
SERVICES: Texts = (["a", "faq-2"], ["0a", "a.b", "A", "-a", "a-", "a_b", "a/b", "a b", "a\n", "ä"])

RESOURCES: dict[str, Texts] = {
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
    "resources.runtimeClassName": NAMES,
}
RESOURCES_SURROUNDINGS: dict[str, Spec] = {
    "resources.tolerations": {"resources": {"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}},
    "resources.tolerations[0].key": {"resources": {"tolerations": [{"operator": "Exists"}]}},
    "resources.tolerations[0].operator": {"resources": {"tolerations": [{"key": "gpu"}]}},
}
RESOURCES_ELEMENTS: dict[str, Callable[[int], Any]] = {"resources.tolerations": lambda _: {"operator": "Exists"}}
RESOURCES_FULL: Spec = {
    "nodeSelector": {"gpu": "h100"},
    "tolerations": [{"key": "gpu", "value": "yes", "effect": "NoExecute", "tolerationSeconds": 60}],
    "priorityClassName": "low",
    "runtimeClassName": "nvidia",
}
RESOURCES_TOGETHER: list[Together] = [
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
    ("bad-label-key", {"resources": {"nodeSelector": {"a b": "c"}}}, False, "resources.nodeSelector"),
    ("good-label-key", {"resources": {"nodeSelector": {"node.kubernetes.io/instance-type": "a.b"}}}, True, ""),
    ("bad-label-value", {"resources": {"nodeSelector": {"a": "b c"}}}, False, "resources.nodeSelector"),
    ("cores-as-number", {"resources": {"cpu": 4}}, True, ""),
    ("cores-as-whole-float", {"resources": {"cpu": 2.0}}, True, ""),
    ("cores-as-float", {"resources": {"cpu": 0.5}}, False, "resources.cpu"),
    ("no-cores", {"resources": {"cpu": 0}}, False, "resources.cpu"),
    ("too-many-cores", {"resources": {"cpu": 10**5}}, False, "resources.cpu"),
    ("unknown-null", {"foo": None}, False, "foo"),
]

API_KEY: dict[str, Texts] = {"apiKeySecret.name": SECRETS, "apiKeySecret.key": KEYS}
API_KEY_SURROUNDINGS: dict[str, Spec] = {"apiKeySecret": {"apiKeySecret": {"name": "llm-tuning-faq"}}}
VLLM_FULL: Spec = {
    "maxModelLen": 4096,
    "gpuMemoryUtilization": 0.5,
    "dtype": "bfloat16",
    "maxLoraRank": 16,
    "maxLoras": 4,
    "maxNumSeqs": 16,
    "maxNumBatchedTokens": 4096,
    "enablePrefixCaching": True,
    "enforceEager": False,
    "modelRunnerV2": False,
    "languageModelOnly": False,
    "toolCallParser": "hermes",
    "reasoningParser": "qwen3",
}
VLLM_TOGETHER: list[Together] = [
    ("parser-that-vllm-lacks", {"vllm": {"toolCallParser": "openai_tools"}}, False, "vllm.toolCallParser"),
    ("no-parsers", {"vllm": {"toolCallParser": "none", "reasoningParser": "none"}}, True, ""),
    ("hf-for-both", {"vllm": {"toolCallParser": "hf", "reasoningParser": "hf"}}, True, ""),
    ("hf-for-one", {"vllm": {"toolCallParser": "hf"}}, True, ""),
    ("hf-and-none", {"vllm": {"toolCallParser": "none", "reasoningParser": "hf"}}, True, ""),
    ("hf-and-another", {"vllm": {"toolCallParser": "hf", "reasoningParser": "qwen3"}}, False, "vllm"),
    ("rank-that-vllm-lacks", {"vllm": {"maxLoraRank": 24}}, False, "vllm.maxLoraRank"),
    ("rank-as-text", {"vllm": {"maxLoraRank": "16"}}, False, "vllm.maxLoraRank"),
    ("vllm's-own-spelling", {"vllm": {"max-model-len": 16}}, False, "vllm.max-model-len"),
]


def below(group: str, fields: Mapping[str, T]) -> dict[str, T]:
    """The same fields in another group."""
    return {f"{group}.{path}": value for path, value in fields.items()}
