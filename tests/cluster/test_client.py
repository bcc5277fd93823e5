"""The Python client and the plugin on a real node, with an operator in its pod and the stand-in for a trainer."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import bin_dir
from llm_tuning.client import AsyncTuningClient, Conflict, NotFound, TuningClient
from llm_tuning.client.explain import explain_job
from llm_tuning.errors import InputError
from tests.support.tuning_namespace import (
    CLAIM,
    TuningNamespace,
    tuning_job,
    tuning_namespace,
)

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT = "ml-engineer"


@pytest.fixture(scope="module")
def space(cluster: Any) -> Iterator[TuningNamespace]:
    """A namespace whose trainer is the stand-in."""
    with tuning_namespace(cluster) as namespace:
        yield namespace


@pytest.fixture(scope="module")
def kubeconfig(space: TuningNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a user with a token and the rights that docs/client.md names, and no others."""
    text = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    role = yaml.safe_load(text.split("```yaml\n", 1)[1].split("```", 1)[0])
    name = role["metadata"]["name"]
    space.apply(role, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}})
    space.kubectl("create", "rolebinding", name, f"--role={name}", f"--serviceaccount={space.name}:{ACCOUNT}")
    config = yaml.safe_load(space.cluster.kubeconfig.read_text())
    user = {"name": ACCOUNT, "user": {"token": space.kubectl("create", "token", ACCOUNT, "--duration=1h").strip()}}
    context = {"cluster": config["clusters"][0]["name"], "user": ACCOUNT, "namespace": space.name}
    _embed_authority(config["clusters"][0]["cluster"], space.cluster.kubeconfig.parent)
    made = {**config, "users": [user], "contexts": [{"name": "c", "context": context}], "current-context": "c"}
    path = tmp_path_factory.mktemp("user") / "kubeconfig"
    path.write_text(yaml.safe_dump(made))
    return path


def _embed_authority(cluster: dict[str, Any], folder: Path) -> None:
    """A path beside the administrator's kubeconfig would not be found beside this one."""
    if "certificate-authority" in cluster:
        data = (folder / cluster.pop("certificate-authority")).read_bytes()
        cluster["certificate-authority-data"] = base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def client(kubeconfig: Path) -> Iterator[TuningClient]:
    with TuningClient(kubeconfig=kubeconfig) as made:
        yield made


def fields(*, stand_in: str = "", **further: Any) -> dict[str, Any]:
    """Arguments of `tune` for a small job; `stand_in` tells the stand-in what to do."""
    spec = tuning_job("x", stand_in=stand_in)["spec"]
    return (
        {"model": "base/tiny", "dataset": "datasets/good.jsonl", "volume": CLAIM}
        | {key: spec[key] for key in ("resources", "retries", "tracking") if key in spec}
        | further
    )


def test_the_whole_chain_in_one_line(client: TuningClient, space: TuningNamespace) -> None:
    service = (
        client.tune("chain", **fields(stand_in="sleep=3")).wait(timeout_seconds=120).serve("chain-live", replicas=0)
    )
    made = space.get("inferenceservices.tuning.llmtuning.dev", "chain-live")
    assert made is not None
    assert made["spec"]["routes"] == [{"name": "chain-live", "targets": [{"tuningJob": "chain", "weight": 1}]}]
    assert [found.name for found in client.list_services()] == ["chain-live"]
    job = client.get("chain")
    assert job.has_succeeded
    assert job.status is not None
    assert job.status.evaluation is not None
    assert job.status.evaluation.tuned_loss == 1.5
    assert "chain has succeeded: the adapter is in models/ft_sft_tiny_" in explain_job(job)
    assert "held out loss" in job._repr_html_()
    service.delete()
    with pytest.raises(Conflict, match="already exists"):
        client.tune("chain", **fields())
    job.delete()
    with pytest.raises(NotFound):
        client.get("chain")


def test_what_the_server_refuses_names_the_same_fields(kubeconfig: Path) -> None:
    """Sent past the client's own check; a name too long is a rule's, a rank too low is the schema's."""

    async def ask() -> None:
        async with AsyncTuningClient(kubeconfig=kubeconfig) as client:
            body = tuning_job("refused", lora={"rank": 0}, retries=-1)
            with pytest.raises(InputError) as refused:
                await client._create(client._jobs, body)
            assert {"spec.lora.rank", "spec.retries"} <= {problem.where for problem in refused.value.problems}
            with pytest.raises(InputError, match="unknown field"):
                await client._create(client._jobs, tuning_job("refused", surprise=1))

    asyncio.run(ask())


def test_the_plugin_by_kubectl(space: TuningNamespace, kubeconfig: Path, tmp_path: Path) -> None:
    (tmp_path / "kubectl-tuning").write_text(f'#!/bin/sh\nexec {sys.executable} -m llm_tuning.kubectl.main "$@"\n')
    (tmp_path / "kubectl-tuning").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{bin_dir()}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "KUBECONFIG": str(kubeconfig),
    }

    def tuning(*arguments: str, input: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(bin_dir() / "kubectl"), "tuning", *arguments]
        return subprocess.run(
            command, input=input, env=environment, capture_output=True, text=True, check=False, timeout=150
        )

    job = json.dumps(tuning_job("plugged", stand_in="sleep=3"))
    submitted = tuning("submit", "-f", "-", "--watch", input=job)
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout.splitlines()[0] == "tuningjob.tuning.llmtuning.dev/plugged created"
    assert "TuningJob plugged: Training" in submitted.stderr
    assert tuning("watch", "plugged").returncode == 0
    report = tuning("report", "plugged").stdout
    assert "models/ft_sft_tiny_" in report
    assert "loss (nats a token)" in report
    assert "plugged has succeeded" in tuning("explain", "plugged").stdout
    assert "Trained: " in tuning("logs", "plugged").stdout
    refused = tuning("submit", "-f", "-", input=json.dumps(tuning_job("x", lora={"rank": 0})))
    assert refused.returncode == 64
    assert "spec.lora.rank: must be at least 1, got 0" in refused.stderr
