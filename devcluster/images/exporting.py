"""Hand an image to a containerd on this machine, without copying it.

The usual way (`buildah push` into `ctr images import`) takes two minutes for a trainer image and leaves it on the disk
twice more for each cluster: as archives, and unpacked. But buildah's storage has each layer unpacked already, in the
very form in which containerd's overlayfs snapshotter keeps it. So the files become hard links in snapshots (a copy if
the two are on different file systems); the archive that is imported then holds no layer, and containerd finds all of
them unpacked: the state that its option `discard_unpacked_layers` leaves behind. Nobody writes to these files: they
are lower layers on both sides.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import subprocess
import tarfile
from pathlib import Path

from devcluster.images.layers import Layer, StoredImage, digest, read_image
from devcluster.images.storage import ImageError, image_id, locked, storage_dir

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
KEPT = "containerd.io/gc.root"
"""The label that `ctr snapshots` sets: what has it is never collected as garbage."""


LINK = 'while umount --lazy "$1" 2>/dev/null; do :; done; exec cp --archive "$2" "$3" "$4"'
"""Every buildah that runs mounts its storage upon itself for a moment, and no link leads across a mount."""


def load_into(socket: Path, reference: str) -> bool:
    """Hand `reference` to the containerd behind `socket`; False if it has this very image. Raises ImageError."""
    with locked(reference), locked(str(socket)):
        wanted = image_id(reference)
        if wanted is None:
            raise ImageError(f"there is no image {reference}; python -m devcluster image build makes it")
        image = read_image(storage_dir() / "storage", wanted)
        manifest = build_manifest(image)
        if held_manifest(socket, reference) == digest(manifest):
            return False
        made = _make_snapshots(socket, image)
        ctr(socket, "images", "import", "-", stdin=build_archive(reference, image, manifest))
        for name in made:  # from now on the image keeps them
            ctr(socket, "snapshots", "label", name, f"{KEPT}=")
    return True


def held_manifest(socket: Path, reference: str) -> str | None:
    """The digest of the manifest that containerd has under a name; None if it does not know the name."""
    lines = ctr(socket, "images", "ls", f"name=={reference}").splitlines()[1:]
    return lines[0].split()[2] if lines else None


def build_manifest(image: StoredImage) -> bytes:
    """The OCI manifest of an image, its layers not compressed."""
    config = {"mediaType": CONFIG_TYPE, "digest": image.config_digest, "size": len(image.config)}
    layers = [{"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in image.layers]
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}).encode()


def build_archive(reference: str, image: StoredImage, manifest: bytes) -> bytes:
    """An OCI archive of an image whose layers the reader has."""
    entry = {"mediaType": MANIFEST_TYPE, "digest": digest(manifest), "size": len(manifest)}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {"io.containerd.image.name": reference}}]}
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        _blob(digest(manifest)): manifest,
        _blob(image.config_digest): image.config,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _blob(name: str) -> str:
    return "blobs/" + name.replace(":", "/")


def _make_snapshots(socket: Path, image: StoredImage) -> list[str]:
    """A snapshot for every layer that containerd does not have; returns the names of the new ones."""
    held = {line.split()[0] for line in ctr(socket, "snapshots", "ls").splitlines()[1:]}
    names = image.chain_ids()
    made = []
    for layer, name, parent in zip(image.layers, names, ["", *names], strict=False):
        if name not in held:
            _make_snapshot(socket, layer, name, parent)
            made.append(name)
    return made


def _make_snapshot(socket: Path, layer: Layer, name: str, parent: str) -> None:
    key = f"load-{secrets.token_hex(8)}"
    ctr(socket, "snapshots", "prepare", key, *([parent] if parent else []))
    try:
        mount = ctr(socket, "snapshots", "mounts", "/target", key)
        found = re.search(r"upperdir=([^,\s]+)", mount) or re.search(r"^mount -t bind (\S+)", mount)
        if found is None:
            raise ImageError(f"containerd does not use the overlayfs snapshotter: {mount.strip()}")
        folder = Path(found.group(1))
        _link(layer.files, folder)
        ctr(socket, "snapshots", "commit", name, key)
    except BaseException:
        ctr(socket, "snapshots", "rm", key)
        raise


def _link(source: Path, target: Path) -> None:
    """Fill the folder `target` with hard links of what is in `source`; with copies on another file system."""
    kind = "--link" if source.stat().st_dev == target.stat().st_dev else "--recursive"
    command = ["unshare", "--mount", "sh", "-c", LINK, "sh", str(source.parents[1]), kind, f"{source}/.", str(target)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ImageError(f"{source} cannot be linked: {result.stderr.strip().splitlines()[-1]}")


def ctr(socket: Path, *arguments: str, stdin: bytes | None = None) -> str:
    """Run ctr in the namespace of Kubernetes; raises ImageError."""
    command = ["ctr", "--address", str(socket), "--namespace", "k8s.io", *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if result.returncode:
        raise ImageError(f"ctr {' '.join(arguments)}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout.decode()
