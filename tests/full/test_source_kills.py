"""kill -9 at twenty points of a download of 200 MB; and a prefix of S3 with two thousand objects."""

from __future__ import annotations

import io
import signal
import time
from pathlib import Path

from llm_tuning.sources.fetch import fetch
from llm_tuning.sources.s3 import S3
from llm_tuning.sources.store import stored, unfinished, verify
from llm_tuning.sources.uri import parse_uri
from tests.support.hub_server import Answer, Request, content, hub_server, tiny_model
from tests.support.source_fetchers import fetcher, moved
from tests.support.source_servers import moto_s3, require_servers

KILLS = 20
SHARDS = 4
SHARD_BYTES = 50_000_000


def test_killed_at_twenty_points_it_is_whole_and_no_byte_that_was_there_comes_again(tmp_path: Path) -> None:
    files = tiny_model(10)
    del files["model.safetensors"]
    shards = [f"model-{n + 1:05d}-of-{SHARDS:05d}.safetensors" for n in range(SHARDS)]
    files |= {"model.safetensors.index.json": b"{}"}
    files |= {name: content(SHARD_BYTES, seed) for seed, name in enumerate(shards)}
    with hub_server() as hub:
        hub.model("o/n", files)
        hub.faults.append(lambda request: Answer(chunk_pause_seconds=0.002) if ".safetensors" in request.path else None)
        total = SHARDS * SHARD_BYTES
        for point in range(KILLS):
            there = on_disk(tmp_path)
            hub.requests.clear()
            running = fetcher(hub.url, "hf://o/n", tmp_path)
            while running.poll() is None and bytes_on(tmp_path) < total * (point + 1) // (KILLS + 1):
                time.sleep(0.005)
            running.send_signal(signal.SIGKILL)
            running.communicate()
            check_nothing_again(hub.file_requests(), there)
        there = on_disk(tmp_path)
        hub.requests.clear()
        assert moved(fetcher(hub.url, "hf://o/n", tmp_path)) < total // KILLS * 2
        check_nothing_again(hub.file_requests(), there)
    (found,) = stored(tmp_path)
    assert verify(found) == []
    assert {name: (found.folder / name).read_bytes() == files[name] for name in found.record.files} == dict.fromkeys(
        found.record.files, True
    )
    assert not unfinished(tmp_path)


def on_disk(root: Path) -> dict[str, int]:
    """Return the bytes that lie of each file: of a whole one, or of its part."""
    files = [path for pattern in ("parts", "files") for path in root.glob(f".work/*/{pattern}/*")]
    return {path.name: path.stat().st_size for path in files}


def bytes_on(root: Path) -> int:
    try:
        return sum(on_disk(root).values())
    except FileNotFoundError:  # one is renamed
        return 0


def check_nothing_again(requests: list[Request], there: dict[str, int]) -> None:
    for request in requests:
        assert request.start >= there.get(request.path.rpartition("/")[2], 0), request


def test_a_prefix_of_two_thousand_objects_is_listed_in_pages_and_whole(tmp_path: Path) -> None:
    require_servers()
    source = parse_uri("s3://tuning/many", "dataset")
    with moto_s3(tmp_path / "moto") as url:
        keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": url}
        origin = S3.from_environment(source, keys)
        origin.client.make_bucket("tuning")
        rows = {f"part-{n:05d}.jsonl": b'{"prompt": "%d", "output": "x"}\n' % n for n in range(2000)}
        for name, row in rows.items():
            origin.client.put_object("tuning", f"many/{name}", io.BytesIO(row), len(row))
        found = fetch(source, tmp_path / "sources", origin=origin)
    assert {name: (found.path / name).read_bytes() for name in found.stored.record.files} == rows
