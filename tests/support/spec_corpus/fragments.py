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
MODEL_URIS: Texts = (
    [
        *("hf://Qwen/Qwen3-0.6B", "hf://a/b@main", "hf://a/b@refs%2Fpr%2F1", "hf://a_b/c.d-e@v1.0"),
        *("hf://a/b@refs/pr/1", "s3://bucket/a", "s3://bucket/a/b/", "s3://bucket/a@b/c"),
    ],
    [
        *("a/b", "hf:/a/b", "HF://a/b", "http://a/b", "https://a/b", "ftp://a/b", "hf://a", "hf://a@main", "hf://a/b@"),
        *(
            "hf://a/b/",
            "hf://a/b/c",
            "hf://a/b?x",
            "hf://a/b#x",
            "hf://a/b@m@n",
            "hf://-a/b",
            "hf://a/b\n",
            "hf://a/b\0",
        ),
        *("hf://a/../b", "hf://a/..", "hf://datasets/a/b", "hf://me:pass@a/b", "s3://me@bucket/a", "s3://bucket"),
        *("s3://bucket/", "s3://Bucket/a", "s3://bucket/a//b", "s3://bucket/a/./b", "s3://bucket/%2e%2e/b", "s3://b/ü"),
        *("hf://a/b@..", "hf://a/b@a..b", "hf://a/b@%2Fx", "hf://a/b@x%", "s3://bu..cket/a", "s3://bucket/a.zip"),
        *(
            "hf://a/b--c",
            "hf://a/b.git",
            "gs://bucket/a",
            "az://c/a",
            "s3://bucket/a?split=train",
            "://",
            "me:pass@host",
        ),
    ],
)
DATASET_URIS: Texts = (
    [
        *("hf://datasets/a/b", "hf://datasets/a/b@v1?split=train", "hf://datasets/a/b/data/x%20y.jsonl"),
        *(
            "s3://bucket/faq.jsonl",
            "s3://bucket/a/?split=train",
            "https://host/faq.json",
            "https://h:8443/@a/b.json?x=1&y=a@b",
        ),
        "https://host/faq.json#sha256=" + "0aB3" * 16,
    ],
    [
        *("datasets/faq.json", "hf://a/b", "hf://datasets/a", "hf://datasets/a/b?split=", "hf://datasets/a/b?x=y"),
        *("hf://datasets/a/b/f?split=train", "https://host", "https://host/", "https://me@host/a", "https://h/a#train"),
        *("https://h/../a", "https://h/a/..", "https://h/a#sha256=" + "ab" * 31, "http://h/a", "h/a", "https://h/a\n"),
        *(
            "https://h/a?token=x",
            "https://huggingface.co/a/b",
            "https://HF.co/a",
            "https://h/a.zip",
            "hf://datasets/a/b/x.tar.gz",
        ),
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
