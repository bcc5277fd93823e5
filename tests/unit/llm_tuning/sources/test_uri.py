from __future__ import annotations

import pytest

from llm_tuning.errors import InputError
from llm_tuning.sources.uri import Kind, hub_source, is_uri, parse_uri, path_parts

SHA = "ab" * 32


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("hf://Qwen/Qwen3-0.6B", "model", ("hf", "Qwen/Qwen3-0.6B", "", "", "")),
        ("HF://models/o/n@v1.0", "model", ("hf", "o/n", "v1.0", "", "")),
        ("hf://o/n@refs/pr/7", "model", ("hf", "o/n", "refs/pr/7", "", "")),
        ("hf://o/n@feature%2Fx", "model", ("hf", "o/n", "feature/x", "", "")),
        ("hf://datasets/o/n@main/data/a.jsonl", "dataset", ("hf", "o/n", "main", "data/a.jsonl", "")),
        (
            "hf://datasets/o/n@refs/convert/parquet/x.parquet",
            "dataset",
            ("hf", "o/n", "refs/convert/parquet", "x.parquet", ""),
        ),
        ("hf://datasets/o/n?split=train", "dataset", ("hf", "o/n", "", "", "train")),
        ("hf://datasets/o/n@v2?split=test", "dataset", ("hf", "o/n", "v2", "", "test")),
        ("s3://bucket/models/base/", "model", ("s3", "bucket/models/base", "", "", "")),
        ("s3://bucket/rows?split=train", "dataset", ("s3", "bucket/rows", "", "", "train")),
        (
            "https://Example.org:8443/a/rows.jsonl?v=2",
            "dataset",
            ("https", "example.org:8443/a/rows.jsonl?v=2", "", "", ""),
        ),
    ],
)
def test_each_form_is_read(text: str, kind: str, parts: tuple[str, ...]) -> None:
    source = parse_uri(text, kind)
    assert (source.scheme, source.location, source.revision, source.file, source.split) == parts
    assert parse_uri(source.uri, kind) == source


def test_a_hash_pins_an_address() -> None:
    source = parse_uri(f"https://example.org/rows.jsonl#sha256={SHA.upper()}", Kind.DATASET)
    assert source.sha256 == SHA
    assert source.uri.endswith(f"#sha256={SHA}")


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("ftp://host/x", "model", ("scheme ftp://", "known are hf://, s3://, https://")),
        ("hff://o/n", "model", ("known are hf://, s3://, https://", "did you mean hf://?")),
        ("gs://bucket/x", "dataset", ("scheme gs://", "give s3://bucket/key", "AWS_ENDPOINT_URL", "HMAC key")),
        ("az://box/x", "model", ("scheme az://", "copy it to the volume, with azcopy", "give its path")),
        ("oci://registry/x", "model", ("scheme oci://", "copy it to the volume")),
        ("http://host/x", "dataset", ("scheme http://", "give https://")),
        ("Qwen", "model", ("is no URI", "hf://...")),
        ("hf://token@o/n", "model", ("a user or a password", "HF_TOKEN")),
        ("https://me:secret@host/rows.json", "dataset", ("https://***@host", "a user or a password")),
        ("s3://key:secret@bucket/rows.json", "dataset", ("AWS_ACCESS_KEY_ID",)),
        ("hf://o/../n", "model", ("`..`", "the path that it leads to")),
        ("s3://bucket/a/%2e%2e/b", "model", ("`..`",)),
        ("hf://o n/m", "model", ("a space",)),
        ("hf://squad", "model", ("must name a repository as owner/name, got 'squad/'", "hf://owner/name[@revision]")),
        ("hf://o/n--m", "model", ("must name a repository",)),
        ("hf://datasets/o/n", "model", ("is a data set, not a model", "dataset.uri")),
        ("hf://o/n", "dataset", ("is a model repository, not a data set", "hf://datasets/o/n")),
        ("hf://spaces/o/n", "model", ("names no repository of a model or a data set",)),
        ("hf://o/n/config.json", "model", ("asks for a file of a model", "give hf://o/n")),
        ("hf://o/n?split=train", "model", ("asks for a split of a model",)),
        ("hf://o/n@", "model", ("has the revision ''",)),
        ("hf://datasets/o/n/a.json?split=train", "dataset", ("a file and a split",)),
        ("hf://datasets/o/n?rows=7", "dataset", ("asks for 'rows=7'", "?split=train")),
        ("hf://datasets/o/n/rows.zip", "dataset", ("archive", ".zip", "unpack")),
        ("s3://bucket", "model", ("is a whole bucket", "s3://bucket/key")),
        ("s3://B/x", "model", ("'B' as its bucket",)),
        ("https://host/folder/", "dataset", ("is a folder",)),
        ("https://host/rows.tar.gz", "dataset", ("archive", ".gz or .zst")),
        ("https://host/model.safetensors", "model", ("is one file, and a model is a folder",)),
        ("https://huggingface.co/o/n/tree/v1", "model", ("a page of the hub", "give hf://o/n@v1")),
        ("https://huggingface.co/datasets/o/n/blob/main/a.csv", "dataset", ("give hf://datasets/o/n/a.csv",)),
        ("https://host/rows?X-Amz-Signature=abc", "dataset", ("holds a credential (X-Amz-Signature)",)),
        ("https://host/rows.json#sha256=12", "dataset", ("64 hex digits",)),
        ("hf://o/" + "n" * 2000, "model", ("2,007 characters",)),
    ],
)
def test_each_mistake_gets_one_sentence_with_its_fix(text: str, kind: str, said: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as refused:
        parse_uri(text, kind)
    (problem,) = refused.value.problems
    assert problem.field == f"{kind}.uri"
    assert problem.fix
    assert "secret" not in str(problem)
    for part in said:
        assert part in str(problem)


def test_a_name_of_the_hub_stands_for_its_uri_and_a_path_does_not() -> None:
    assert hub_source("Qwen/Qwen3-0.6B@v1", Kind.MODEL) == parse_uri("hf://Qwen/Qwen3-0.6B@v1", Kind.MODEL)
    assert hub_source("o/n", Kind.DATASET) == parse_uri("hf://datasets/o/n", Kind.DATASET)
    for path in ("base", "/o/n", "./o/n", "a/b/c", "o/n--m", "hf://o/n", "~/o/n"):
        assert hub_source(path, Kind.MODEL) is None


def test_what_looks_like_a_scheme_is_a_uri_and_a_path_with_a_colon_is_not() -> None:
    assert all(map(is_uri, ("hf://o/n", "HTTPS://h/x", "gs://b/x", "hf:o/n")))
    assert not any(map(is_uri, ("base/x", "a:b", "rows.json#train", "C:\\base")))


def test_sources_of_different_places_never_share_a_folder() -> None:
    uris = ["hf://o/n", "s3://one/o/n", "s3://one/p/n", "s3://two/o/n"]
    folders = {path_parts(parse_uri(uri, Kind.MODEL)) for uri in uris}
    folders |= {
        path_parts(parse_uri(uri, "dataset")) for uri in ("hf://datasets/o/n", "https://h/n", "https://h/n?v=2")
    }
    assert len(folders) == 7
    assert (
        path_parts(parse_uri("hf://o/n@x", "model")) == path_parts(parse_uri("hf://o/n", "model")) == ("hf", "o", "n")
    )
