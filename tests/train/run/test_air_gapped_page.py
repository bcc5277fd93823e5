"""What docs/air-gapped.md says to type, where there is no network: a mirror alone, then nothing, then a disk to read.

The shell has a network of its own with nothing in it but a loopback, on which Olah is the mirror.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.missing import skip_or_fail
from tests.support.page_runs import Reader, Walk
from tests.support.pages import ROOT, snippets
from tests.support.source_servers import git_commit, olah_command, require_servers

PAGE = "docs/air-gapped.md"
PORT = 8090
ROWS = b"".join(b'{"prompt": "What is %d plus %d?", "output": "It is %d."}\n' % (n, n, 2 * n) for n in range(40))
ALONE = ("unshare", "--net", "--mount", "--map-root-user")
COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"


@pytest.fixture
def reader(tmp_path: Path, tiny_base: Path) -> Iterator[Reader]:
    require_servers()
    if subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode:
        skip_or_fail("needs namespaces (unshare --net --mount --map-root-user)")
    files = {path.name: path.read_bytes() for path in tiny_base.iterdir() if path.is_file()}
    git_commit(tmp_path / "git/models/Qwen/Qwen3-0.6B", files)
    git_commit(tmp_path / "git/datasets/owner/faq", {"data/train.jsonl": ROWS, "README.md": b"card"})
    made = Reader(tmp_path, within=ALONE)
    try:
        made.prepare("source .venv/bin/activate", "ip link set lo up", "unset HF_HUB_OFFLINE", "export HF_TOKEN=")
        made.prepare("mount -t tmpfs own /mnt")  # nobody else's /mnt has a folder more
        yield made
    finally:
        made.terminal.close()


def follow(reader: Reader, heading: str) -> None:
    walk = Walk("air-gapped", ((PAGE, heading),))
    assert walk.snippets(), heading
    for snippet in walk.snippets():
        reader.run(snippet)


def test_the_page_is_followed_with_a_mirror_without_a_network_and_from_a_disk_to_read(
    reader: Reader, tmp_path: Path
) -> None:
    mirror = shlex.join(olah_command(tmp_path / "olah", tmp_path / "git", PORT))
    reader.terminal.open_window(mirror, says="Uvicorn running", seconds=60)
    assert reader.terminal.type("cat /proc/net/route", seconds=10).output.count("\n") == 1, "no way out"
    follow(reader, "With a mirror")
    follow(reader, "Carried over")
    reader.terminal.close_windows()
    reader.prepare("rm -r sources", "unset HF_ENDPOINT")
    follow(reader, "Without a network")
    reader.prepare("mv sources /mnt/sources", "mount --bind /mnt/sources /mnt/sources")
    reader.prepare("mount -o remount,bind,ro /mnt/sources", "! touch /mnt/sources/x", "unset HF_HUB_OFFLINE")
    follow(reader, "From a folder that can only be read")

    page = (ROOT / PAGE).read_text()
    told = re.findall(r"^\| [^|`]+ \| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert len(told) == 4
    validate = "tune-llm validate --dataset_path 'hf://datasets/owner/faq?split=train'"
    reader.prepare("cp -r /mnt/sources .", "unset HF_HUB_OFFLINE")
    [commit] = (reader.folder / "sources/hf/Qwen/Qwen3-0.6B").iterdir()
    [rows] = (reader.folder / "sources/hf/datasets/owner/faq").glob("*/data/train.jsonl")
    reader.terminal.open_window(mirror, says="Uvicorn running", seconds=60)
    said = [
        reader.terminal.type(command, seconds=120).output
        for command in (
            f"HF_HUB_OFFLINE=1 {validate} --llm_path hf://owner/gone",
            f"cp -r {commit} {commit.with_name(COMMIT)} && sed -i s/{commit.name}/{COMMIT}/ {commit.with_name(COMMIT)}"
            f"/source.json && HF_HUB_OFFLINE=1 {validate} --llm_path hf://Qwen/Qwen3-0.6B",
            f"export HF_ENDPOINT=http://127.0.0.1:{PORT}; "
            "tune-llm sources fetch hf://datasets/owner/faq/README.md --sources_dir /mnt/sources",
            f"sed -i s/plus/less/ {rows} && tune-llm sources verify",
        )
    ]
    assert [words in output for words, output in zip(told, said, strict=True)] == [True] * 4, said


def test_the_page_names_a_mirror_that_the_walk_puts_in_its_place() -> None:
    assert [each.text for each in snippets(ROOT / PAGE) if "hub.example.com" in each.text] == [
        "export HF_ENDPOINT=https://hub.example.com"
    ]
