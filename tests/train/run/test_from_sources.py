"""A run whose base and rows are named on a hub: what manifest, card and registry say of where they are from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_tuning.codes.tune_llm import run_tuning
from llm_tuning.core import console
from llm_tuning.models.manifest import read_manifest
from llm_tuning.models.registry import Registry
from tests.support.hub_server import hub_server
from tests.support.tiny_base import make_base

ROWS = b"".join(b'{"prompt": "What is %d?", "output": "It is %d."}\n' % (n, n) for n in range(24))


def test_a_run_by_name_says_what_it_was_made_of_and_the_next_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "published")
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_ours", {"HF_HUB_OFFLINE"})
    settings = {"devices": "cpu", "max_steps": 2, "batch_size": 4, "lora_rank": 4, "tracking_uri": None}
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        commit = hub.model("owner/tiny", files)
        rows_commit = hub.dataset("owner/faq", {"data/train-00000-of-00001.jsonl": ROWS, "data/test.jsonl": ROWS})
        named = {"llm_path": "owner/tiny", "dataset_path": "hf://datasets/owner/faq?split=train"}
        first = run_tuning(**named, **settings)
        sent = hub.bytes_sent
        second = run_tuning(**named, **settings)
        assert hub.bytes_sent == sent
        hub.requests.clear()
        assert run_tuning(**named, **settings, model_id=first) == first
        assert not hub.requests, "a finished run keeps its commits and asks nobody"
    manifest = read_manifest(Path("models") / first)
    assert manifest is not None
    assert manifest.base.name == "tiny"
    assert manifest.base.source is not None
    assert (manifest.base.source.uri, manifest.base.source.commit) == ("hf://owner/tiny", commit)
    assert set(manifest.base.source.files) == set(files)
    assert manifest.dataset is not None
    assert manifest.dataset.source is not None
    assert (manifest.dataset.source.commit, manifest.dataset.source.selection) == (rows_commit, "split=train")
    assert list(manifest.dataset.source.files) == ["data/train-00000-of-00001.jsonl"]
    assert "_tiny_" in first
    assert "_tiny_" in second
    assert manifest.description == "sft of tiny on faq"
    card = Path("models", first, "README.md").read_text()
    assert 'base_model: "owner/tiny"' in card
    assert 'datasets: ["owner/faq"]' in card
    assert f"`hf://owner/tiny` at commit `{commit}`" in card
    assert f"`hf://datasets/owner/faq`, `split=train` at commit `{rows_commit}`" in card
    entries = {entry["model_id"]: entry for entry in Registry("models").entries()}
    assert {entry["model_name"] for entry in entries.values() if entry["model_type"] == "base"} == {"tiny"}
    assert Registry("models").verify() == []
    assert json.dumps(entries)
