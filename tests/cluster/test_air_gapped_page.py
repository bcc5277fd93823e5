"""What docs/air-gapped.md says to do on a cluster without a network: sources copied, verified, and named by commit."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from devcluster.cluster import Clients
from llm_tuning.codes.tune_llm import main
from tests.support.hub_server import hub_server
from tests.support.page_runs import texts
from tests.support.pages import ROOT, yaml_documents
from tests.support.plain_base import make_plain_base
from tests.support.tuning_namespace import CLAIM, OPERATOR_IMAGE, pod, tuning_namespace

PAGE, HEADING = "docs/air-gapped.md", "On a cluster, without a network"
ROWS = b"".join(b'{"prompt": "What is %d plus %d?", "output": "It is %d."}\n' % (n, n, 2 * n) for n in range(40))
SMALL: dict[str, Any] = {"gpus": 0, "cpu": "100m", "memory": "256Mi"}


def test_sources_that_were_carried_over_are_taken_and_nobody_is_asked(
    cluster: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    base = make_plain_base(tmp_path / "published")
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        model = hub.model("Qwen/Qwen3-0.6B", {each.name: each.read_bytes() for each in base.iterdir()})
        rows = hub.dataset("owner/faq", {"data/train.jsonl": ROWS})
        assert main(["sources", "fetch", "Qwen/Qwen3-0.6B"]) == 0
        assert main(["sources", "fetch", "hf://datasets/owner/faq?split=train"]) == 0
    job = yaml.safe_load(yaml_documents(ROOT / PAGE)[0])
    job["spec"]["model"]["uri"] = f"{job['spec']['model']['uri'].partition('@')[0]}@{model}"
    job["spec"]["dataset"]["uri"] = f"hf://datasets/owner/faq@{rows}?split=train"
    job["spec"] |= {"volume": {"claimName": CLAIM}, "resources": SMALL}
    Path("faq.yaml").write_text(yaml.safe_dump(job))
    with tuning_namespace(cluster, values={"sources.endpoint": "http://127.0.0.1:9"}) as space:
        space.apply(pod("volume", OPERATOR_IMAGE, ["sleep", "infinity"]))
        space.kubectl("wait", "--for=condition=Ready", "pod/volume", "--timeout=90s")
        commands = texts(PAGE, HEADING)
        assert len(commands) == 5
        said = [space.kubectl(*shlex.split(command)[1:]) for command in commands]
        assert "2 sources: all as fetched" in said[1]
        ended = space.wait("faq", "Succeeded", seconds=120)
    assert ended["status"]["model"]["revision"] == model
    assert ended["status"]["dataset"]["revision"] == rows
    assert "Qwen3-0.6B" in ended["status"]["modelId"]
