"""A running cluster as tests and the demo use it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.build import bin_dir
from devcluster.launcher import ClusterError, is_up, running
from devcluster.parts import Plan
from devcluster.paths import kubeconfig, state_dir

__all__ = ["Cluster", "bin_dir", "kubeconfig", "state_dir"]

NAMESPACE = """apiVersion: v1
kind: Namespace
metadata:
  name: {name}
  labels: {{pod-security.kubernetes.io/enforce: {profile}}}
"""


class KubectlError(Exception):
    """kubectl or helm failed; the message is what it said."""


class Clients:
    """kubectl and helm for the cluster of a kubeconfig."""

    def __init__(self, path: Path) -> None:
        self.kubeconfig = path

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run kubectl and return its output; raises KubectlError."""
        return self._run("kubectl", *arguments, input=input)

    def helm(self, *arguments: str) -> str:
        """Run helm and return its output; raises KubectlError."""
        return self._run("helm", *arguments)

    def _run(self, program: str, *arguments: str, input: str | None = None) -> str:
        command = [str(bin_dir() / program), *arguments]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        result = subprocess.run(command, input=input, capture_output=True, text=True, env=environment, check=False)
        if result.returncode:
            raise KubectlError(f"{program} {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    @contextmanager
    def namespace(self, profile: str = "restricted") -> Iterator[str]:
        """A namespace of its own that enforces a Pod Security profile; it goes in the background."""
        name = f"test-{secrets.token_hex(4)}"
        self.kubectl("apply", "-f", "-", input=NAMESPACE.format(name=name, profile=profile))
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false")


class Cluster(Clients):
    """A devcluster that is up. Raises ClusterError if it is not."""

    def __init__(self, name: str) -> None:
        if not is_up(name):
            others = f" (running: {', '.join(running())})" if running() else ""
            raise ClusterError(
                f"cluster {name} is not up{others}; start it with: python -m devcluster up --name {name}"
            )
        self.name = name
        self.plan = Plan.read(state_dir(name))
        super().__init__(kubeconfig(name))

    @property
    def containerd(self) -> Path:
        """containerd's socket, to be reached from the host."""
        return self.plan.run / "containerd.sock"

    def load(self, image: str) -> bool:
        """Hand over an image of buildah's; False if this very image was there."""
        from devcluster import images

        return images.load_into(self.containerd, image)

    def import_archive(self, archive: Path) -> None:
        """Hand over the images of an archive."""
        ctr = ["ctr", "--address", str(self.containerd), "--namespace", "k8s.io"]
        subprocess.run([*ctr, "images", "import", str(archive)], check=True, capture_output=True)

    def end(self, part: str, number: int = signal.SIGTERM) -> None:
        """End a part of the node (`kubelet`, `kube-apiserver`, ...) by a signal, and wait until it has gone."""
        pids = self._ask(do="end", part=part, signal=int(number))
        deadline = time.monotonic() + 30
        while part in pids and time.monotonic() < deadline:
            time.sleep(0.05)
            pids = self._ask(do="pids")

    def start(self, part: str) -> None:
        """Start a part again."""
        self._ask(do="start", part=part)

    def send(self, part: str, number: int) -> None:
        """Send a signal to a part."""
        self._ask(do="send", part=part, signal=int(number))

    def _ask(self, **request: object) -> dict[str, int]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.plan.run / "control.sock"))
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(request) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
        if "error" in answer:
            raise ClusterError(f"{request}: {answer['error']}")
        return dict(answer["pids"])
