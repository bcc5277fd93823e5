"""Bases and data sets by URI, from a hub of the test on the devcluster's own network: fetched once, pinned, fenced."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Clients, Cluster
from tests.support.hub_server import Answer, HubServer, content, hub_server
from tests.support.tuning_namespace import (
    CLAIM,
    OPERATOR_IMAGE,
    TuningNamespace,
    pod,
    tuning_job,
    tuning_namespace,
    wait_until,
)

STAND_IN = Path(__file__).resolve().parents[1] / "support" / "images" / "stand_in"
MODEL = {"path": None, "uri": "hf://owner/tiny"}
HOLD_SECONDS = 40
CONNECT = f"""
import socket, sys, time
host, port, wanted = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "yes"
def reaches():
    try:
        socket.create_connection((host, port), 2).close()
    except OSError:
        return False
    return True
ends = time.monotonic() + {HOLD_SECONDS}
while reaches() != wanted:
    if time.monotonic() > ends:
        sys.exit(1)
    time.sleep(1)
"""
"""Until the hub is reached, or is not: a rule takes a moment until it is written."""


@dataclass(frozen=True)
class Site:
    """A namespace whose operator knows the hub."""

    space: TuningNamespace
    hub: HubServer
    files: dict[str, bytes]

    def holds(self, name: str, labels: dict[str, str], wanted: str) -> None:
        """Wait until a pod with these labels reaches the hub (`yes`), or does not (`no`)."""
        host, _, port = self.hub.url.removeprefix("http://").partition(":")
        made = pod(name, OPERATOR_IMAGE, ["python", "-c", CONNECT, host, port, wanted], claim=None)
        made["metadata"]["labels"] = labels
        self.space.apply(made)

        def phase() -> str:
            return str((self.space.get("pod", name) or {}).get("status", {}).get("phase"))

        wait_until(lambda: phase() in ("Succeeded", "Failed"), 90, lambda: f"pod {name} is {phase()}")
        assert phase() == "Succeeded", f"{name} to reach the hub: {wanted}"


@pytest.fixture(scope="module")
def site(cluster: Clients, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not isinstance(cluster, Cluster):
        pytest.skip("the hub listens on the devcluster's own network")
    folder = tmp_path_factory.mktemp("filled")
    subprocess.run([sys.executable, str(STAND_IN / "fill_volume.py"), str(folder)], check=True)
    base = folder / "base" / "tiny"
    files = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    with hub_server(cluster.plan.host_address) as hub:
        hub.model("owner/tiny", files)
        hub.dataset("owner/rows", {"faq.jsonl": (folder / "datasets" / "good.jsonl").read_bytes()})
        with tuning_namespace(cluster, values={"sources.endpoint": hub.url}) as space:
            yield Site(space, hub, files)


def from_hub(name: str, **spec: Any) -> dict[str, Any]:
    job = tuning_job(name, **{"model": MODEL, **spec})
    del job["spec"]["model"]["path"]
    return job


def test_two_jobs_at_once_fetch_one_commit_once_and_no_other_pod_reaches_the_hub(site: Site) -> None:
    commit = site.hub.repositories["models/owner/tiny"].branches["main"]
    rows = {"uri": "hf://datasets/owner/rows/faq.jsonl"}
    site.space.apply(from_hub("one", dataset=rows), from_hub("two"))
    jobs = [site.space.wait(name, "Succeeded", seconds=180) for name in ("one", "two")]
    for job in jobs:
        assert job["status"]["model"]["revision"] == commit
        assert job["status"]["model"]["path"] == f"sources/hf/owner/tiny/{commit}"
        assert job["status"]["modelId"].startswith("ft_sft_tiny_")
    weights = len(site.files["model.safetensors"])
    sent = [r for r in site.hub.file_requests() if r.path.endswith("model.safetensors") and "/owner/tiny/" in r.path]
    assert len(sent) == 1, f"{len(sent)} transfers of {weights} bytes"

    own = {"tuning.llmtuning.dev/job-uid": jobs[0]["metadata"]["uid"]}
    site.holds("as-trainer", own | {"tuning.llmtuning.dev/role": "train"}, "no")
    site.holds("as-fetch", own | {"tuning.llmtuning.dev/role": "fetch"}, "yes")


def test_a_later_job_moves_no_byte_and_a_moved_branch_is_another_commit(site: Site) -> None:
    first = site.hub.repositories["models/owner/tiny"].branches["main"]
    site.space.apply(from_hub("there"))
    site.space.wait("there", "Fetched", seconds=90)
    before = len(site.hub.file_requests())
    site.space.apply(from_hub("again"))
    site.space.wait("again", "Fetched", seconds=90)
    assert len(site.hub.file_requests()) == before
    moved = site.hub.model("owner/tiny", site.files | {"LICENSE": b"another"})
    site.space.apply(from_hub("moved"))
    job = site.space.wait("moved", "Fetched", seconds=90)
    assert job["status"]["model"]["revision"] == moved != first
    for name in ("there", "again", "moved"):
        site.space.wait(name, "Succeeded", seconds=120)


def test_what_the_hub_says_is_a_reason_with_what_to_do(site: Site) -> None:
    gated = site.hub.repositories.setdefault("models/owner/gated", type(site.hub.repositories["models/owner/tiny"])())
    gated.commit(site.files)
    gated.gated = True
    for name, uri, reason in (
        ("gone", "hf://owner/nothing@main", "AccessDenied"),
        ("gated", "hf://owner/gated", "AccessDenied"),
        ("revision", "hf://owner/tiny@nowhere", "RevisionNotFound"),
    ):
        site.space.apply(from_hub(name, model={"uri": uri}))
        job = site.space.wait(name, "Finished", seconds=90)
        found = {c["type"]: c for c in job["status"]["conditions"]}
        assert (found["Fetched"]["status"], found["Fetched"]["reason"]) == ("False", reason)
        assert uri.split("@")[0].removeprefix("hf://") in found["Fetched"]["message"]
        assert site.space.get("job", f"{name}-check") is None
        assert reason in {event["reason"] for event in site.space.events(name)}


def test_a_busy_hub_is_seen_and_waited_for(site: Site) -> None:
    site.hub.model("owner/busy", site.files)
    site.hub.once(Answer(status=429, headers={"Retry-After": "15"}), of="/owner/busy/", times=1)
    site.space.apply(from_hub("busy", model={"uri": "hf://owner/busy"}))
    wait_until(
        lambda: site.space.conditions("busy").get("Stalled", {}).get("reason") == "RateLimited",
        60,
        lambda: json.dumps(site.space.conditions("busy")),
    )
    job = site.space.wait("busy", "Fetched", seconds=90)
    [stalled] = [c for c in job["status"]["conditions"] if c["type"] == "Stalled"]
    assert stalled["reason"] != "RateLimited", stalled  # the check's pod may wait for room beside those of other tests


def test_an_inference_service_waits_for_its_base(site: Site) -> None:
    service = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "bare"},
        "spec": {
            "model": {"uri": "hf://owner/tiny"},
            "volume": {"claimName": CLAIM},
            "replicas": 0,
            "resources": {"gpus": 0},
        },
    }
    site.space.apply(service)
    wait_until(lambda: site.space.get("deployment", "bare") is not None, 90, "the Deployment")
    status = (site.space.get("inferenceservices.tuning.llmtuning.dev", "bare") or {})["status"]
    assert status["model"]["path"].startswith("sources/hf/owner/tiny/")
    wrong = {**service, "metadata": {"name": "wrong"}, "spec": {**service["spec"], "model": {"uri": "hf://owner/none"}}}
    site.space.apply(wrong)

    def reason() -> str:
        found = site.space.get("inferenceservices.tuning.llmtuning.dev", "wrong") or {}
        conditions = {c["type"]: c for c in found.get("status", {}).get("conditions", ())}
        return str(conditions.get("Stalled", {}).get("reason"))

    wait_until(lambda: reason() == "AccessDenied", 90, reason)
    assert site.space.get("deployment", "wrong") is None


def test_an_inference_service_says_how_far_its_fetch_is(site: Site) -> None:
    site.hub.model("owner/slow", site.files | {"model.safetensors": content(12_000_000)})
    site.hub.faults.append(
        lambda request: Answer(chunk_pause_seconds=0.15) if "/owner/slow/" in request.path else None  # half a minute
    )
    spec = {
        "model": {"uri": "hf://owner/slow"},
        "volume": {"claimName": CLAIM},
        "replicas": 0,
        "resources": {"gpus": 0},
    }
    head = {"apiVersion": "tuning.llmtuning.dev/v1alpha1", "kind": "InferenceService"}
    site.space.apply({**head, "metadata": {"name": "slow"}, "spec": spec})

    def status() -> dict[str, Any]:
        found = site.space.get("inferenceservices.tuning.llmtuning.dev", "slow") or {}
        return dict(found.get("status", {}))

    wait_until(lambda: "bytesPerSecond" in status().get("progress", {}), 90, lambda: json.dumps(status()))
    progress = status()["progress"]
    assert 0 < progress["bytes"] < progress["totalBytes"]
    assert progress["totalBytes"] > 12_000_000
    assert progress["remainingSeconds"] > 0
    wide = site.space.kubectl("get", "inferenceservices.tuning.llmtuning.dev", "slow", "-o", "wide").splitlines()
    assert wide[0].split()[-4:] == ["FETCHED", "ETA", "BYTES/S", "AGE"]
    wait_until(lambda: site.space.get("deployment", "slow") is not None, 90, "the Deployment")
    wait_until(lambda: "progress" not in status(), 30, lambda: json.dumps(status()))
