"""The demo's hub, asked by our fetch and by huggingface_hub's client."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from llm_tuning.errors import InputError
from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.hub import Hub
from llm_tuning.sources.store import verify
from llm_tuning.sources.uri import parse_uri
from tests.support.hub_server import tiny_model

HUB = Path(__file__).resolve().parents[3] / "examples/demo/cluster/hub/hub.py"
FILES = {name: content for name, content in tiny_model(200_000).items() if "/" not in name}
SNAPSHOT = "import sys; from huggingface_hub import snapshot_download as s; s(sys.argv[1], local_dir=sys.argv[2])"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repositories/demo/tiny"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def url(repository: Path) -> Iterator[str]:
    command = [sys.executable, str(HUB), str(repository.parents[1]), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    process.terminate()
    assert process.wait(20) == 0


def test_a_folder_is_a_repository_that_is_fetched_and_verified(url: str, tmp_path: Path) -> None:
    found = fetch(parse_uri("hf://demo/tiny", "model"), tmp_path / "sources", origin=Hub(url))
    assert verify(found.stored) == []
    assert set(found.stored.record.files) == set(FILES) - {"pytorch_model.bin", "modeling_own.py"}
    assert (found.path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_huggingface_hubs_client_downloads_the_same_bytes(url: str, tmp_path: Path) -> None:
    judged = tmp_path / "judge"
    environment = {"PATH": "", "HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", SNAPSHOT, "demo/tiny", str(judged)], check=True, env=environment)
    assert {path.name: path.read_bytes() for path in judged.iterdir() if path.is_file()} == FILES


def test_other_bytes_are_another_commit(url: str, repository: Path, tmp_path: Path) -> None:
    source = parse_uri("hf://demo/tiny", "model")
    first = fetch(source, tmp_path / "sources", origin=Hub(url)).commit
    (repository / "LICENSE").write_bytes(b"another")
    second = fetch(source, tmp_path / "sources", origin=Hub(url))
    assert second.commit != first
    assert (second.path / "LICENSE").read_bytes() == b"another"
    with pytest.raises(InputError, match=f"has no revision {first}"):
        fetch(parse_uri(f"hf://demo/tiny@{first}", "model"), tmp_path / "elsewhere", origin=Hub(url))


@pytest.mark.parametrize(
    ("uri", "says"), [("hf://demo/none", "is not on"), ("hf://demo/tiny@v2", "has no revision v2")]
)
def test_what_is_not_there_is_refused_as_a_hub_does(url: str, tmp_path: Path, uri: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        fetch(parse_uri(uri, "model"), tmp_path / "sources", origin=Hub(url))


@pytest.mark.parametrize("file", ["../../secret", "%2E%2E/%2E%2E/secret", "..%2F..%2Fsecret", "folder/config.json"])
def test_nothing_but_the_files_of_a_repository_is_sent(url: str, repository: Path, file: str) -> None:
    (repository.parents[1] / "secret").write_text("secret")
    for asked in (f"demo/tiny/resolve/main/{file}", f"..%2Frepositories/demo/resolve/main/{file}"):
        with pytest.raises(HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/{asked}")
