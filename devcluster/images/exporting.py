"""Hand an image to a containerd: a pipe into `ctr images import`, with only those layers that it does not have."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from typing import IO

from devcluster.images.layers import Layer, StoredImage, read_image, write_layer
from devcluster.images.storage import ImageError, image_id, locked, storage_dir

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def load_into(socket: Path, reference: str) -> bool:
    """Hand `reference` to the containerd behind `socket`; False if it has this very image. Raises ImageError."""
    with locked(reference):
        wanted = image_id(reference)
        if wanted is None:
            raise ImageError(f"there is no image {reference}; python -m devcluster image build makes it")
        storage = storage_dir() / "storage"
        image = read_image(storage, wanted)
        manifest = build_manifest(image)
        if held_manifest(socket, reference) == _digest(manifest):
            return False
        held = set(ctr(socket, "content", "ls", "--quiet").split())
        missing = [layer for layer in image.layers if layer.digest not in held]
        _import(socket, storage, build_index(reference, image, manifest), missing)
    return True


def held_manifest(socket: Path, reference: str) -> str | None:
    """The digest of the manifest that containerd has under a name; None if it does not know the name."""
    lines = ctr(socket, "images", "ls", f"name=={reference}").splitlines()[1:]
    return lines[0].split()[2] if lines else None


def build_manifest(image: StoredImage) -> bytes:
    """The OCI manifest of an image with plain (not compressed) layers: compressing would cost more than it saves."""
    config = {"mediaType": CONFIG_TYPE, "digest": image.config_digest, "size": len(image.config)}
    layers = [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in image.layers]
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}).encode()


def build_index(reference: str, image: StoredImage, manifest: bytes) -> dict[str, bytes]:
    """The small files of an OCI archive: all but the layers."""
    entry = {"mediaType": MANIFEST_TYPE, "digest": _digest(manifest), "size": len(manifest)}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {"io.containerd.image.name": reference}}]}
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        _blob(_digest(manifest)): manifest,
        _blob(image.config_digest): image.config,
    }


def write_archive(target: IO[bytes], storage: Path, index: dict[str, bytes], layers: list[Layer]) -> None:
    """Write an OCI archive of `index` with `layers`; whoever reads it has the others."""
    for name, content in index.items():
        target.write(_header(name, len(content)) + content + _padding(len(content)))
    for layer in layers:
        target.write(_header(_blob(layer.digest), layer.size))
        write_layer(storage, layer, target)
        target.write(_padding(layer.size))
    target.write(bytes(2 * tarfile.BLOCKSIZE))


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _import(socket: Path, storage: Path, index: dict[str, bytes], layers: list[Layer]) -> None:
    command = [*_ctr(socket), "images", "import", "-"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write_archive(process.stdin, storage, index, layers)
            process.stdin.close()
        except BrokenPipeError:
            pass  # ctr has ended; why is in what it said
        said = process.stdout.read().decode(errors="replace").strip()
    if process.returncode:
        raise ImageError(f"containerd refused the image: {said}")


def ctr(socket: Path, *arguments: str) -> str:
    """Run ctr in the namespace of Kubernetes; raises ImageError."""
    result = subprocess.run([*_ctr(socket), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise ImageError(f"ctr {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def _ctr(socket: Path) -> list[str]:
    return ["ctr", "--address", str(socket), "--namespace", "k8s.io"]


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
