"""Starts and stops nodes. A launcher process stays with its node; a janitor process outlives both and cleans up."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

from devcluster.build import build
from devcluster.cleaning import clean, make_cgroups
from devcluster.kube_router import build_kube_router
from devcluster.parts import Plan, write_configuration
from devcluster.paths import SOURCE, clusters_dir, state_dir

UP_SECONDS = 120.0
DOWN_SECONDS = 40.0
SLOTS = 16
"""Clusters at once on one machine: each has addresses and an image store of its own, by its slot."""
SLOT_LOCKS = Path("/run/lock/llm-tuning-devcluster")
"""Of the machine, as addresses are, not of somebody's cache folder."""

ADDRESSES = "10.214.0.0/16"
"""Of all clusters; each has a /30 of them."""

PR_SET_PDEATHSIG = 1


class ClusterError(Exception):
    """A cluster could not be started or stopped; the message says why and what to do."""


def up(
    name: str,
    *,
    gpus: int = 0,
    fresh: bool = False,
    fast_controllers: bool = False,
    volumes: int = 40,
    network_policies: bool = False,
) -> Path:
    """Start the cluster unless it is up; returns its kubeconfig. Raises ClusterError or BuildError.

    `fresh` forgets the images that earlier clusters of the slot had loaded; `network_policies` enforces them.
    """
    if os.geteuid() != 0:
        raise ClusterError(
            "a node needs root (namespaces, cgroups, iptables); as a user take kind: see docs/devcluster.md"
        )
    state = state_dir(name)
    if is_up(name):
        return state / "kubeconfig"
    _sweep(name)
    programs = build()
    firewall = build_kube_router() if network_policies else None
    slot, lock = _take_slot()
    images = clusters_dir() / "slots" / str(slot) / "containerd"
    if fresh:
        shutil.rmtree(images, ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)
    (state / "run").mkdir(parents=True)
    (state / "log").mkdir()
    plan = Plan(
        name=name,
        state=state,
        programs=programs,
        images=images,
        node_address=f"10.214.{slot}.2",
        host_address=f"10.214.{slot}.1",
        gpus=gpus,
        fast_controllers=fast_controllers,
        volumes=volumes,
        firewall=firewall,
    )
    write_configuration(plan)
    plan.write()
    log_file = state / "log" / "launcher.log"
    with log_file.open("ab") as stream:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "devcluster.launcher", str(state), f"devcl{slot}"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            pass_fds=[lock.fileno()],
            start_new_session=True,
            cwd=SOURCE.parent,
        )
    lock.close()
    deadline = time.monotonic() + UP_SECONDS
    while not (state / "ready").exists():
        if launcher.poll() is not None or time.monotonic() > deadline:
            launcher.terminate()
            said = "\n".join(log_file.read_text().splitlines()[-8:])
            raise ClusterError(f"cluster {name} did not start; see {log_file.parent}; the launcher said:\n{said}")
        time.sleep(0.1)
    return state / "kubeconfig"


def down(name: str) -> None:
    """Stop the cluster and wait until nothing of it is left. Raises ClusterError if that takes too long."""
    state = state_dir(name)
    pid = _launcher_pid(state)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_SECONDS
        while (state / "launcher.pid").exists() or _has_janitor(state):
            if time.monotonic() > deadline:
                raise ClusterError(f"cluster {name} is not gone after {DOWN_SECONDS:.0f} s; see {state / 'log'}")
            time.sleep(0.1)
    _sweep(name)


def is_up(name: str) -> bool:
    """Whether the cluster runs and was ready."""
    state = state_dir(name)
    return (state / "ready").exists() and _launcher_pid(state) is not None


def running() -> list[str]:
    """Names of the clusters that run."""
    folder = clusters_dir() / "clusters"
    return sorted(path.name for path in folder.iterdir() if is_up(path.name)) if folder.exists() else []


def _sweep(name: str) -> None:
    """Remove what is left where even the janitor was ended."""
    state = state_dir(name)
    if (state / "plan.json").exists() and _launcher_pid(state) is None:
        plan = Plan.read(state)
        clean(plan.cgroup, f"devcl{plan.node_address.split('.')[2]}", plan.run)
        for left in ("ready", "init.pid", "launcher.pid"):
            (state / left).unlink(missing_ok=True)
        for entry in state.iterdir():
            if entry.name != "log":
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _launcher_pid(state: Path) -> int | None:
    """The launcher's process id, if it is still that process."""
    try:
        pid = int((state / "launcher.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except (OSError, ValueError):
        return None
    return pid if f"devcluster.launcher\0{state}" in command else None


def _has_janitor(state: Path) -> bool:
    """Whether the process that cleans up is still there: it ends a moment after all else is gone."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"devcluster.janitor\0{state}\0".encode() in command.read_bytes():
                return True
    return False


def _take_slot() -> tuple[int, IO[str]]:
    """The first free slot; it is taken for as long as the lock file is open, also in a child process."""
    for slot in range(SLOTS):
        SLOT_LOCKS.mkdir(parents=True, exist_ok=True)
        lock = (SLOT_LOCKS / str(slot)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return slot, lock
    raise ClusterError(f"{SLOTS} clusters run on this machine already; stop one with: python -m devcluster down")


def launch(state: Path, cable: str) -> int:
    """Stay with the node until it ends or a signal comes: what the launcher process does."""
    plan = Plan.read(state)
    (state / "launcher.pid").write_text(str(os.getpid()))
    reader, writer = os.pipe()  # the write end stays here: its end of file tells the janitor
    subprocess.Popen(
        [sys.executable, "-m", "devcluster.janitor", str(state), cable], stdin=reader, start_new_session=True
    )
    os.close(reader)
    make_cgroups(plan.cgroup)
    # What is for a cluster that has gone must not leave this machine by its default route.
    subprocess.run(["ip", "route", "add", "unreachable", ADDRESSES, "metric", "4096"], capture_output=True, check=False)
    namespaces = ("--pid", "--mount", "--net", "--fork", "--kill-child=KILL", "--mount-proc")
    node = subprocess.Popen(
        ["unshare", *namespaces, sys.executable, "-m", "devcluster.node", str(state)],
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - this process has no threads
    )
    signal.signal(signal.SIGTERM, _pass_on(state))
    _wait_for_namespace(node)
    (state / "init.pid").write_text(_child_of(node.pid))
    for command in (
        f"link add {cable} type veth peer name eth0 netns {node.pid}",
        f"addr add {plan.host_address}/30 dev {cable}",
        f"link set {cable} up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    code = node.wait()
    os.close(writer)
    return code


def _pass_on(state: Path) -> Callable[[int, FrameType | None], None]:
    """SIGTERM ends the node's first process, and so the node."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(int((state / "init.pid").read_text()), signal.SIGTERM)

    return pass_on


def _end_with_parent() -> None:
    """The kernel is to end this process with its parent, also when that is ended by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_namespace(node: subprocess.Popen[bytes]) -> None:
    own = Path("/proc/self/ns/net").readlink()
    while node.poll() is None:
        if Path(f"/proc/{node.pid}/ns/net").readlink() != own and _child_of(node.pid):
            return
        time.sleep(0.01)
    raise ClusterError("unshare failed; its message is above")


def _child_of(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


if __name__ == "__main__":
    sys.exit(launch(Path(sys.argv[1]), sys.argv[2]))
