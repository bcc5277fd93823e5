"""S3 on moto's server: path style, prefixes in pages, keys, buckets, objects that change."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.patience import Limits
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.s3 import S3
from llm_tuning.sources.store import verify
from llm_tuning.sources.uri import Source, parse_uri
from tests.support.hub_server import tiny_model
from tests.support.source_servers import moto_s3, require_servers

KEYS = {"AWS_ACCESS_KEY_ID": "right", "AWS_SECRET_ACCESS_KEY": "secret", "HOME": "/nowhere"}
FILES = tiny_model(3_000_000)
QUICK = Limits(tries=2, backoff_seconds=0.01)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    require_servers()
    with moto_s3(tmp_path_factory.mktemp("moto")) as address:
        client = origin(address, parse_uri("s3://tuning/base", "model")).client
        client.make_bucket("tuning")
        for name, content in FILES.items():
            put(client, f"base/tiny/{name}", content)
        put(client, "base/tiny-other/config.json", b"{}")
        put(client, "rows/faq.jsonl", b'{"prompt": "a", "output": "b"}\n')
        yield address


def origin(url: str, source: Source, **changed: str) -> S3:
    return S3.from_environment(source, {**KEYS, "AWS_ENDPOINT_URL": url, **changed})


def put(client: Any, key: str, content: bytes) -> None:
    client.put_object("tuning", key, io.BytesIO(content), len(content))


def get(url: str, uri: str, root: Path, kind: str = "model", **changed: str) -> Any:
    source = parse_uri(uri, kind)
    return fetch(source, root, origin=origin(url, source, **changed), limits=QUICK)


def test_a_prefix_is_a_model_and_only_what_lies_below_it(url: str, tmp_path: Path) -> None:
    found = get(url, "s3://tuning/base/tiny", tmp_path)
    assert found.stored.record.name == "tiny"
    assert verify(found.stored) == []
    assert {name: (found.path / name).read_bytes() for name in found.stored.record.files} == {
        name: content for name, content in FILES.items() if name in found.stored.record.files
    }
    assert "pytorch_model.bin" not in found.stored.record.files
    assert get(url, "s3://tuning/base/tiny/", tmp_path).moved == 0


def test_an_object_is_a_file_of_rows_and_a_changed_one_another_source(url: str, tmp_path: Path) -> None:
    first = get(url, "s3://tuning/rows/faq.jsonl", tmp_path, "dataset")
    assert first.path.read_bytes().startswith(b'{"prompt"')
    source = parse_uri("s3://tuning/rows/faq.jsonl", "dataset")
    put(origin(url, source).client, "rows/faq.jsonl", b'{"prompt": "c", "output": "d"}\n')
    second = get(url, "s3://tuning/rows/faq.jsonl", tmp_path, "dataset")
    assert second.commit != first.commit
    assert not fetch(source, tmp_path, origin=origin(url, source), commit=first.commit).asked
    with pytest.raises(SourceRefused, match="has changed since") as gone:
        fetch(source, tmp_path / "another", origin=origin(url, source), commit=first.commit)
    assert gone.value.reason is Terminal.REVISION


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://nobodys-bucket/x", "names a bucket that does not exist"),
        ("s3://tuning/gone", "has no object of this name and none below it"),
        ("s3://tuning/base/ti", "has no object of this name and none below it"),
    ],
)
def test_what_is_not_there_is_named(url: str, tmp_path: Path, uri: str, said: str) -> None:
    with pytest.raises(SourceRefused, match=said) as refused:
        get(url, uri, tmp_path)
    assert refused.value.reason is Terminal.NOT_FOUND


def test_an_endpoint_that_does_not_answer_is_passing(tmp_path: Path) -> None:
    with pytest.raises(SourceBusy, match="cannot be reached") as busy:
        get("http://127.0.0.1:9", "s3://tuning/x", tmp_path)
    assert busy.value.passing is Passing.UNREACHABLE


def test_a_wrong_key_is_denied_with_what_to_give(url: str, tmp_path: Path) -> None:
    check_keys_after(url, "0")
    try:
        with pytest.raises(SourceRefused, match=r"is not open to these keys \(InvalidAccessKeyId\)") as denied:
            get(url, "s3://tuning/base/tiny", tmp_path, AWS_ACCESS_KEY_ID="wrong")
    finally:
        check_keys_after(url, "inf")
    assert denied.value.reason is Terminal.ACCESS
    assert "AWS_ACCESS_KEY_ID" in denied.value.problems[0].fix
    assert "secret" not in str(denied.value)


def check_keys_after(url: str, requests: str) -> None:
    """Have moto check keys as AWS does, after so many requests more."""
    headers = {"Content-Type": "text/plain"}
    asked = urllib.request.Request(f"{url}/moto-api/reset-auth", requests.encode(), headers, method="POST")
    urllib.request.urlopen(asked).close()
