"""URIs: what each form means, and one sentence for each thing that is wrong with one."""

from __future__ import annotations

import pytest

from llm_tuning.sources.uri import MAX_CHARACTERS, RULES, SourceKind, is_uri, parse_uri, refusal

DIGEST = "ab" * 32


def parts(text: str, kind: SourceKind) -> tuple[object, ...]:
    found = parse_uri(text, kind)
    return found.scheme, found.owner, found.name, found.revision


@pytest.mark.parametrize(
    ("text", "want", "base_name"),
    [
        ("hf://Qwen/Qwen3-0.6B", ("hf", "Qwen", "Qwen3-0.6B", None), "Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B@main", ("hf", "Qwen", "Qwen3-0.6B", "main"), "Qwen3-0.6B"),
        ("hf://a/b@refs%2Fpr%2F1", ("hf", "a", "b", "refs/pr/1"), "b"),
        ("s3://bucket/base/qwen3/", ("s3", "bucket", "base/qwen3", None), "qwen3"),
        ("gs://bucket/qwen3", ("gs", "bucket", "qwen3", None), "qwen3"),
    ],
)
def test_a_model_is_a_repository_or_a_prefix(text: str, want: tuple[object, ...], base_name: str) -> None:
    assert parts(text, "model") == want
    assert parse_uri(text, "model").base_name == base_name


def test_a_data_set_is_a_split_a_file_an_object_or_a_page() -> None:
    split = parse_uri("hf://datasets/a/b@v1?split=train", "dataset")
    assert (split.owner, split.name, split.revision, split.split, split.file) == ("a", "b", "v1", "train", None)
    file = parse_uri("hf://datasets/a/b/data/x%20y.jsonl", "dataset")
    assert (file.name, file.file) == ("b", "data/x y.jsonl")
    assert parts("s3://bucket/faq.jsonl", "dataset") == ("s3", "bucket", "faq.jsonl", None)
    web = parse_uri(f"https://host:8443/f.json?x=1#sha256={DIGEST.upper()}", "dataset")
    assert (web.owner, web.name, web.sha256) == ("host:8443", "f.json?x=1", DIGEST)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Qwen/Qwen3", "must begin with hf://, s3://, gs://, az:// or https://"),
        ("http://host/x", "must begin with"),
        ("ftp://host/x", "must begin with"),
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
    with pytest.raises(ValueError, match=r"^(must|names)"):
        parse_uri(text, "model")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://a/b", "hf://datasets/owner/name"),
        ("hf://datasets/a", "must be hf://datasets/owner/name"),
        ("hf://datasets/a/b/f.jsonl?split=train", "with /file or ?split=train"),
        ("https://host/", "https://host/file"),
        (f"https://host/f#sha256={DIGEST[:-1]}", "#sha256=HEX"),
        ("https://host/f#train", "#sha256=HEX"),
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


def test_rules_can_be_written_in_cel() -> None:
    for rule in (rule for rules in RULES.values() for rule in rules):
        assert "'" not in rule.pattern
        assert "(?" not in rule.pattern  # RE2 knows no look-around


def test_a_path_is_no_uri() -> None:
    assert is_uri("hf://a/b")
    assert is_uri("foo://a")
    assert not is_uri("base/qwen3")
    assert not is_uri("C:/models")
