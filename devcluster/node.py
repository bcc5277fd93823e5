"""The first process of a node, in process, mount and network namespaces of its own.

It mounts what the programs expect, starts them in order, starts again what dies, and does what the control socket
asks for. When it ends, however it ends, the kernel ends every process, mount, bridge and rule of the node with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from devcluster.kube_api import KubeApi
from devcluster.objects import create_objects, pretend_gpus, start_loops
from devcluster.parts import FIREWALL, NODE, PAUSE_IMAGE, START_ORDER, Plan, commands
from devcluster.scratch_image import write_scratch_image

log = logging.getLogger(__name__)

START_SECONDS = 60.0
RESTART_SECONDS = 1.0
"""Between the unexpected end of a part and its next start."""


class Parts:
    """The node's programs: started, ended, and started again when they end by themselves."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._commands = commands(plan)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._wanted: set[str] = set()
        self._lock = threading.Lock()

    def start(self, name: str) -> None:
        """Start the part unless it runs."""
        with self._lock:
            self._wanted.add(name)
            if name in self._running:
                return
            log_file = self._plan.state / "log" / f"{name}.log"
            environment = {**os.environ, "GOMAXPROCS": "2"}
            with log_file.open("ab") as stream:
                self._running[name] = subprocess.Popen(
                    self._commands[name],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=environment,
                    cwd="/",
                )

    def end(self, name: str, number: int) -> None:
        """Send the signal and leave the part ended."""
        with self._lock:
            self._wanted.discard(name)
            process = self._running.get(name)
        if process is not None:
            os.kill(process.pid, number)

    def send(self, name: str, number: int) -> None:
        """Send a signal, as to pause and continue."""
        with self._lock:
            os.kill(self._running[name].pid, number)

    def pids(self) -> dict[str, int]:
        with self._lock:
            return {name: process.pid for name, process in self._running.items()}

    def reaped(self, pid: int) -> None:
        """A child has ended: start it again if it is a part that is wanted."""
        with self._lock:
            names = [name for name, process in self._running.items() if process.pid == pid]
            for name in names:
                self._running.pop(name).returncode = 0
            again = [name for name in names if name in self._wanted]
        for name in again:
            log.warning("%s ended by itself; starting it again", name)
            threading.Timer(RESTART_SECONDS, self.start, [name]).start()


def main(state: str) -> None:
    """Run the node until a signal ends it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    plan = Plan.read(Path(state))
    parts = Parts(plan)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave(parts))
    _mount(plan)
    _connect(plan)
    _start(plan, parts)
    threading.Thread(target=_serve_control, args=(plan, parts), daemon=True).start()
    (plan.state / "ready").touch()
    log.info("ready")
    while True:
        pid, _ = os.wait()  # as every first process: also those that lost their parent
        parts.reaped(pid)


def _leave(parts: Parts) -> Callable[[int, FrameType | None], None]:
    def leave(number: int, frame: FrameType | None) -> None:
        for pid in parts.pids().values():
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)  # etcd's data goes, but containerd's store stays and should be closed
        os._exit(0)

    return leave


def _mount(plan: Plan) -> None:
    """Folders that programs insist on, of this node alone."""
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    for folder, at in (("log", "/var/log"), ("kubelet", "/var/lib/kubelet")):
        (plan.state / folder).mkdir(exist_ok=True)
        Path(at).mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(plan.state / folder), at)
    _run("mount", "--make-rshared", "/var/lib/kubelet")


def _connect(plan: Plan) -> None:
    """Bring up the cable that the launcher puts into this namespace."""
    _wait("the cable to the host", lambda: Path("/proc/net/dev").read_text().count("eth0:") == 1)
    for command in (
        "link set lo up",
        f"addr add {plan.node_address}/30 dev eth0",
        "link set eth0 up",
        f"route add default via {plan.host_address}",
    ):
        _run("ip", *command.split())
    for setting in ("ipv4/ip_forward", "bridge/bridge-nf-call-iptables"):
        path = Path("/proc/sys/net") / setting
        if path.exists():
            path.write_text("1")


def _start(plan: Plan, parts: Parts) -> None:
    """Start everything, and wait until pods can run."""
    api = KubeApi(plan.state / "kubeconfig")
    for name in START_ORDER[:3]:
        parts.start(name)
    _wait("containerd", lambda: _works("ctr", *_ctr(plan), "version"))
    # What an earlier cluster ran is unknown to this one.
    left = subprocess.run(["ctr", *_ctr(plan), "containers", "ls", "-q"], capture_output=True, text=True, check=True)
    if left.stdout.split():
        _run("ctr", *_ctr(plan), "containers", "rm", *left.stdout.split())
    archive = plan.state / "pause.tar"
    write_scratch_image(archive, PAUSE_IMAGE, {"/pause": plan.programs / "pause"}, entrypoint=["/pause"])
    _run("ctr", *_ctr(plan), "images", "import", str(archive))
    _wait("the API server", lambda: api.text("/readyz") == "ok")
    for name in START_ORDER[3:]:
        parts.start(name)
    create_objects(api, plan)
    _wait("the node to be Ready", lambda: _is_ready(api))
    if plan.firewall:
        parts.start(FIREWALL)
        _wait(FIREWALL, lambda: _works("iptables-legacy", "--list", "KUBE-ROUTER-FORWARD"))
    pretend_gpus(api, plan)
    _wait("service accounts", lambda: bool(api.get("/api/v1/namespaces/default/serviceaccounts/default")))
    start_loops(api, plan)


def _is_ready(api: KubeApi) -> bool:
    conditions = api.get(f"/api/v1/nodes/{NODE}")["status"].get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _serve_control(plan: Plan, parts: Parts) -> None:
    """One JSON object a connection: {"do": "start" | "end" | "send" | "pids", "part": ..., "signal": ...}."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(plan.run / "control.sock"))
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as stream:
                try:
                    answer = _control(parts, json.loads(stream.readline()))
                except (OSError, KeyError, ValueError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                stream.write(json.dumps(answer) + "\n")


def _control(parts: Parts, request: dict[str, object]) -> dict[str, object]:
    name, number = str(request.get("part", "")), int(str(request.get("signal", 0)))
    match request["do"]:
        case "start":
            parts.start(name)
        case "end":
            parts.end(name, number)
        case "send":
            parts.send(name, number)
        case "pids":
            pass
        case other:
            raise ValueError(f"unknown request {other!r}")
    return {"pids": parts.pids()}


def _ctr(plan: Plan) -> tuple[str, ...]:
    return ("--address", str(plan.run / "containerd.sock"), "--namespace", "k8s.io")


def _works(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")


def _wait(what: str, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    last: object = ""
    while time.monotonic() < deadline:
        try:
            if reached():
                return
        except (OSError, KeyError) as error:
            last = error
        time.sleep(0.1)
    raise RuntimeError(f"waited {START_SECONDS:.0f} s in vain for {what} {last}")


if __name__ == "__main__":
    main(sys.argv[1])
