"""A disk that fills up under one pod of several: its own, or the claim that all share."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.full.nodes.test_nodes import free_port
from tests.support.missing import skip_or_fail
from tests.support.node_pods import ends, steps_done, wait_for
from tests.support.pod_process import Claim

TRAINING = {"batchSize": 2, "epochs": 2}
LONG = {"batchSize": 2, "epochs": 1000, "saveSteps": 5}
ON_A_FULL_DISK = 'mount -t tmpfs -o size=1m full "$0" && dd if=/dev/zero of="$0/fill" 2>/dev/null; exec "$@"'

Start = Callable[..., "list[subprocess.Popen[str]]"]


@pytest.fixture
def pods(claim: Claim) -> list[Claim]:
    return [claim, Claim(claim.root, log="termination-log-1")]


@pytest.fixture
def start(pods: list[Claim]) -> Iterator[Start]:
    """`start(training, own, full=1)` starts both pods, the one of that index with a full disk of its own at `own`."""
    started = []

    def start(
        training: dict[str, Any], own: Path | None = None, full: int | None = None
    ) -> list[subprocess.Popen[str]]:
        nodes = {"hosts": ["127.0.0.1", "127.0.0.1"], "port": free_port()}
        for index, pod in enumerate(pods):
            variables = {
                "JOB_COMPLETION_INDEX": str(index),
                "LLM_TUNING_ADDRESS": "127.0.0.1",
                "GLOO_SOCKET_IFNAME": "lo",
            }
            before = []
            if own is not None and index == full:
                variables |= {"TMPDIR": str(own), "HOME": str(own)}
                before = behind(ON_A_FULL_DISK, own)
            started.append(pod.start("train", nodes=nodes, before=before, environment=variables, training=training))
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def behind(script: str, folder: Path) -> list[str]:
    """A command that runs what follows it with a disk of its own at `folder`."""
    folder.mkdir()
    command = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*command, script, str(folder), "true"], capture_output=True, check=False).returncode:
        skip_or_fail("needs root and mount namespaces")
    return [*command, script, str(folder)]


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_a_pod_alone_costs_nothing_where_only_caches_would_lie_on_it(
    pods: list[Claim], start: Start, tmp_path: Path, full: int
) -> None:
    first, second = ends(pods, start(TRAINING, tmp_path / "own", full))
    print(first.code, first.text, second.code, second.text, first.log[-3000:], second.log[-2000:])
    assert (first.code, second.code) == (0, 0), first.log + second.log


@pytest.fixture
def small(claim: Claim) -> Iterator[Path]:
    """The claim on a small disk, and the file that fills it."""
    aside = claim.root.with_name("aside")
    claim.root.rename(aside)
    claim.root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "claim", str(claim.root)], check=False)
    if mounted.returncode:
        skip_or_fail("needs root")
    try:
        shutil.copytree(aside, claim.root, dirs_exist_ok=True)
        yield claim.root / "filler"
    finally:
        subprocess.run(["umount", "--lazy", str(claim.root)], check=True)


def test_a_claim_that_fills_up_ends_both_pods_with_its_name_and_the_run_goes_on_once_there_is_room(
    pods: list[Claim], start: Start, small: Path
) -> None:
    processes = start(LONG)
    wait_for("steps", lambda: steps_done(pods[0]) > 5, processes)
    since = time.monotonic()
    subprocess.run(["dd", "if=/dev/zero", f"of={small}", "bs=4k"], capture_output=True, check=False)
    first, second = ends(pods, processes)
    print(f"ended after {time.monotonic() - since:.1f} s: {first.text} {second.text}")
    assert (first.code, first.result["reason"]) == (75, "VolumeFull"), first.log
    assert first.result["message"].startswith("spec.volume.claimName: no space is left in models")
    assert second.code == 75, second.log
    small.unlink()
    processes = start(LONG)
    before = steps_done(pods[0])
    wait_for("steps", lambda: steps_done(pods[0]) > before, processes)
    for process in processes:
        process.terminate()
    assert "resumed from step" in ends(pods, processes)[0].log
