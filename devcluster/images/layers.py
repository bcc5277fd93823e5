"""Images as the storage of buildah (driver overlay) holds them: a configuration, and a folder for each layer."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layer:
    """A layer: the folder with its files, the digest (`sha256:...`) and the size of its archive."""

    files: Path
    digest: str
    size: int


@dataclass(frozen=True)
class StoredImage:
    """An image as the storage holds it, lowest layer first."""

    config_digest: str
    config: bytes
    layers: list[Layer]

    def chain_ids(self) -> list[str]:
        """For each layer the name of it and all below (the ChainID of the OCI image specification)."""
        chain: list[str] = []
        for layer in self.layers:
            below = f"{chain[-1]} " if chain else ""
            chain.append(digest(f"{below}{layer.digest}".encode()) if chain else layer.digest)
        return chain


def read_image(storage: Path, image: str) -> StoredImage:
    """The image with the id `image`."""
    images = json.loads((storage / "overlay-images" / "images.json").read_text())
    top = next(entry["layer"] for entry in images if entry["id"] == image)
    known = {entry["id"]: entry for entry in json.loads((storage / "overlay-layers" / "layers.json").read_text())}
    layers: list[Layer] = []
    while top:
        entry = known[top]
        layers.insert(0, Layer(storage / "overlay" / top / "diff", entry["diff-digest"], entry["diff-size"]))
        top = entry.get("parent")
    name = f"sha256:{image}"
    key = base64.b64encode(name.encode()).decode()
    return StoredImage(name, (storage / "overlay-images" / image / f"={key}").read_bytes(), layers)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
