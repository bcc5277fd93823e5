"""The layers of a stored image as the tar archives that they were, byte for byte, without a copy of them on disk.

`buildah push` copies each layer to a temporary file first, and cannot leave out what the other side has: minutes and
gigabytes for a trainer image in which a few files changed. Its storage (containers/storage, overlay driver) keeps each
layer unpacked in `overlay/ID/diff`, and beside it what a tar archive has apart from the files' contents, in the form of
the tar-split library: JSON lines, in which type 2 is bytes to write as they are and type 1 is the content of a file.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHUNK_BYTES = 1 << 20
FILE, SEGMENT = 1, 2


@dataclass(frozen=True)
class Layer:
    """A layer: its id in the storage, the digest (`sha256:...`) and the size of its archive."""

    id: str
    digest: str
    size: int


@dataclass(frozen=True)
class StoredImage:
    """An image as the storage holds it."""

    config_digest: str
    config: bytes
    layers: list[Layer]


def read_image(storage: Path, image: str) -> StoredImage:
    """The image with the id `image`, lowest layer first."""
    images = json.loads((storage / "overlay-images" / "images.json").read_text())
    top = next(entry["layer"] for entry in images if entry["id"] == image)
    known = {entry["id"]: entry for entry in json.loads((storage / "overlay-layers" / "layers.json").read_text())}
    layers: list[Layer] = []
    while top:
        entry = known[top]
        layers.insert(0, Layer(top, entry["diff-digest"], entry["diff-size"]))
        top = entry.get("parent")
    digest = f"sha256:{image}"
    key = base64.b64encode(digest.encode()).decode()
    config = (storage / "overlay-images" / image / f"={key}").read_bytes()
    return StoredImage(digest, config, layers)


def write_layer(storage: Path, layer: Layer, target: IO[bytes]) -> None:
    """Write the archive of a layer."""
    files = storage / "overlay" / layer.id / "diff"
    with gzip.open(storage / "overlay-layers" / f"{layer.id}.tar-split.gz", "rb") as lines:
        for entry in map(json.loads, lines):
            if entry["type"] == SEGMENT:
                target.write(base64.b64decode(entry["payload"]))
            elif entry.get("size"):
                for chunk in _chunks(os.path.join(os.fsencode(files), _name(entry))):
                    target.write(chunk)


def _name(entry: dict[str, str]) -> bytes:
    raw = entry.get("name_raw")
    return base64.b64decode(raw) if raw else os.fsencode(entry["name"])


def _chunks(path: bytes) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
