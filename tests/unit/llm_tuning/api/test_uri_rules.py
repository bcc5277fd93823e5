"""URIs of the API: which are taken, and one sentence for each thing that is wrong with one."""

from __future__ import annotations

import re

import pytest

from llm_tuning.api.uri_rules import MAX_CHARACTERS, RULES, SourceKind, is_uri, name_of_model, refusal
from llm_tuning.sources.uri import parse_uri
from tests.support.spec_corpus.corpus import Texts
from tests.support.spec_corpus.fragments import DATASET_URIS, MODEL_URIS

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B@main", "Qwen3-0.6B"),
        ("hf://a/b@refs/pr/1", "b"),
        ("s3://bucket/base/qwen3/", "qwen3"),
        ("s3://bucket/x@y/z", "z"),
    ],
)
def test_a_model_is_called_by_its_repository_or_prefix(text: str, name: str) -> None:
    assert refusal(text, "model") is None
    assert name_of_model(text) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Qwen/Qwen3", "must begin with hf://, s3:// or https://"),
        ("http://host/x", "must begin with"),
        ("ftp://host/x", "must begin with"),
        ("gs://bucket/x", "S3-compatible XML API; use s3://bucket/key with that API's address as AWS_ENDPOINT_URL"),
        ("abfss://box@account/x", "must not be of Azure's storage"),
        ("az://box/x", "copy it to the volume, with azcopy for example, and use path"),
        ("hf://a/../b", "must not have . or .."),
        ("s3://bucket/%2e%2E/b", "must not have . or .."),
        ("hf://datasets/a/b", "names a data set"),
        ("https://host/f.json", "a model is a folder"),
        ("hf://gpt2", "must be hf://owner/name[@revision]"),
        ("hf://gpt2@main", "must be hf://owner/name[@revision]"),
        ("hf://a/b/c.gguf", "without a file"),
        ("hf://a/b?split=train", "without a file, query or fragment"),
        ("hf://a/b\n", "must be hf://owner/name"),
        ("s3://bucket", "s3://bucket/prefix"),
        ("", "must have 1 to"),
        ("hf://a/" + "b" * MAX_CHARACTERS, "must have 1 to"),
    ],
)
def test_what_is_no_model_gets_one_sentence(text: str, said: str) -> None:
    assert said in str(refusal(text, "model"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://a/b", "hf://datasets/owner/name"),
        ("hf://datasets/a", "must be hf://datasets/owner/name"),
        ("hf://datasets/a/b/f.jsonl?split=train", "with /file or ?split=train"),
        ("https://host/", "https://host/file"),
        (f"https://host/f#sha256={DIGEST[:-1]}", "#sha256=HEX"),
        ("https://host/f#train", "#sha256=HEX"),
        ("https://huggingface.co/datasets/a/b", "is a page of the hub"),
        ("https://host/rows.tar.gz", "is an archive"),
        ("s3://bucket/rows.ZIP", "is an archive"),
        ("hf://datasets/a/b--c", "must not have --"),
        ("hf://datasets/a/b.git", ".git at its end"),
    ],
)
def test_what_is_no_data_set_gets_one_sentence(text: str, said: str) -> None:
    assert said in str(refusal(text, "dataset"))


@pytest.mark.parametrize("text", ["hf://me:hunter2@a/b", "hf://hunter2@a/b", "s3://me:hunter2@bucket/x", "x:hunter2@y"])
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_password_is_refused_and_not_repeated(text: str, kind: SourceKind) -> None:
    said = str(refusal(text, kind))
    assert "put it into a Secret" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("query", ["X-Amz-Signature=hunter2", "a=1&token=hunter2", "SIG=hunter2"])
def test_a_signed_address_is_refused_and_not_repeated(query: str) -> None:
    said = str(refusal(f"https://host/f.json?{query}", "dataset"))
    assert "credential in its query" in said
    assert "hunter2" not in said


def test_rules_can_be_written_in_cel() -> None:
    for rule in (rule for rules in RULES.values() for rule in rules):
        assert "'" not in rule.pattern
        assert not re.search(r"\(\?[^i]", rule.pattern)  # RE2 knows no look-around


def test_a_path_is_no_uri() -> None:
    assert is_uri("hf://a/b")
    assert is_uri("foo://a")
    assert not is_uri("base/qwen3")
    assert not is_uri("C:/models")


CORPUS: dict[SourceKind, Texts] = {"model": MODEL_URIS, "dataset": DATASET_URIS}


@pytest.mark.parametrize("kind", CORPUS)
def test_what_the_api_takes_a_fetch_understands(kind: SourceKind) -> None:
    good, bad = CORPUS[kind]
    for text in good:
        assert refusal(text, kind) is None, text
        assert parse_uri(text, kind).kind == kind
    for text in bad:
        assert refusal(text, kind) is not None, text


@pytest.mark.parametrize("text", MODEL_URIS[0])
def test_a_model_has_one_name(text: str) -> None:
    assert parse_uri(text, "model").name == name_of_model(text)
