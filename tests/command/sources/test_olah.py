"""The good way against Olah, a hub that nobody here wrote, with huggingface_hub's client as the judge of bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_tuning.errors import InputError
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.hub import Hub
from llm_tuning.sources.store import verify
from llm_tuning.sources.uri import parse_uri
from tests.support.hub_server import tiny_model
from tests.support.source_servers import git_commit, olah

FILES = tiny_model(200_000)
PARTS = {
    f"data/{split}-0000{n}-of-00002.parquet": f"{split}{n}".encode() * 9 for split in ("train", "test") for n in (0, 1)
}
SNAPSHOT = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], repo_type=sys.argv[2], revision=sys.argv[3], local_dir=sys.argv[4], endpoint=sys.argv[5])
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("git")


@pytest.fixture(scope="module")
def url(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    git_commit(repositories / "models/o/n", FILES)
    git_commit(repositories / "datasets/o/rows", {"README.md": b"card", **PARTS})
    with olah(tmp_path_factory.mktemp("olah"), repositories) as address:
        yield address


def snapshot(url: str, name: str, kind: str, revision: str, folder: Path) -> Path:
    command = [sys.executable, "-c", SNAPSHOT, name, kind, revision, str(folder), url]
    subprocess.run(command, check=True, env={"PATH": "", "HOME": str(folder), "HF_HUB_DISABLE_PROGRESS_BARS": "1"})
    return folder


def test_a_model_has_the_bytes_that_huggingface_hub_fetches(url: str, repositories: Path, tmp_path: Path) -> None:
    found = fetch(parse_uri("hf://o/n", "model"), tmp_path / "sources", origin=Hub(url))
    judged = snapshot(url, "o/n", "model", "main", tmp_path / "judge")
    assert found.moved == found.stored.record.size
    assert verify(found.stored) == []
    for name in found.stored.record.files:
        assert (found.path / name).read_bytes() == (judged / name).read_bytes() == FILES[name]
    assert set(FILES) - set(found.stored.record.files) == {
        "pytorch_model.bin",
        "modeling_own.py",
        "original/consolidated.00.pth",
    }


def test_a_split_of_a_data_set_is_its_files(url: str, tmp_path: Path) -> None:
    found = fetch(parse_uri("hf://datasets/o/rows?split=test", "dataset"), tmp_path, origin=Hub(url))
    assert {name: (found.path / name).read_bytes() for name in found.stored.record.files} == {
        name: content for name, content in PARTS.items() if "test" in name
    }


def test_one_file_of_a_data_set_is_a_file(url: str, tmp_path: Path) -> None:
    name = "data/train-00001-of-00002.parquet"
    found = fetch(parse_uri(f"hf://datasets/o/rows/{name}", "dataset"), tmp_path, origin=Hub(url))
    assert found.path.read_bytes() == PARTS[name]


def test_branches_and_commits_are_revisions(url: str, repositories: Path, tmp_path: Path) -> None:
    first = git_commit(repositories / "models/o/moving", FILES)
    origin = Hub(url)
    at_first = fetch(parse_uri("hf://o/moving", "model"), tmp_path, origin=origin)
    second = git_commit(repositories / "models/o/moving", {**FILES, "README.md": b"another"}, branch="dev")
    at_second = fetch(parse_uri("hf://o/moving@dev", "model"), tmp_path, origin=origin)
    assert [at_first.commit, at_second.commit] == [first, second]
    again = fetch(parse_uri(f"hf://o/moving@{first}", "model"), tmp_path, origin=origin)
    assert not again.asked
    assert (again.path / "README.md").read_bytes() == FILES["README.md"]
    assert (at_second.path / "README.md").read_bytes() == b"another"


@pytest.mark.parametrize(
    "uri",
    [
        "hf://Qwen/Qwen3-0.6B",
        "hf://models/o/n@v1.0",
        "hf://o/n@refs/pr/7",
        "hf://o/n@feature%2Fx",
        "hf://datasets/o/n@main/data/a.jsonl",
        "hf://datasets/o/n@refs/convert/parquet/x.parquet",
        "hf://datasets/o/n/a/b.json",
        "hf://o_1/n.x-y",
    ],
)
def test_the_grammar_is_that_of_huggingface_hub(uri: str) -> None:
    from huggingface_hub.utils import parse_hf_uri

    kind = "dataset" if "datasets/" in uri else "model"
    ours, theirs = parse_uri(uri, kind), parse_hf_uri(uri)
    assert (ours.location, ours.revision or None, ours.file, ours.kind) == (
        theirs.id,
        theirs.revision,
        theirs.path_in_repo,
        theirs.type,
    )
    assert parse_hf_uri(ours.uri) == theirs


@pytest.mark.parametrize(
    "uri", ["hf://squad", "hf://o/n@", "hf://o/n--m", "hf://o/n..m", "hf://", "hf://o/.n", "hf://o/n-"]
)
def test_what_huggingface_hub_refuses_is_refused(uri: str) -> None:
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri

    with pytest.raises(HfUriError):
        parse_hf_uri(uri)
    with pytest.raises(InputError):
        parse_uri(uri, "model")
