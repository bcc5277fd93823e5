"""How long registering one model takes in a registry of 1,000 and of 10,000 entries."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_tuning.models.registry import Registry
from tests.support import registry_writers
from tests.support.models import make_manifest, publish_model

REPEATS = 15


@pytest.fixture(scope="module", params=[1_000, 10_000])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry of that many models, with entries as long as real ones."""
    folder = tmp_path_factory.mktemp("registry") / "models"
    for number in range(request.param):
        model_id = f"ft_sft_qwen3-0.6b_{1764000000 + number}_{number:06x}"
        (folder / model_id).mkdir(parents=True)
        manifest = make_manifest(model_id, model_name=model_id, description="sft of qwen3-0.6b on faq.json")
        (folder / model_id / "model.json").write_text(manifest.model_dump_json())
    Registry(folder).heal()
    return folder


def test_one_writer_is_done_in_milliseconds(models: Path) -> None:
    size = len(Registry(models).entries())
    times = []
    for number in range(REPEATS):
        publish_model(models, f"one-{number}")
        began = time.perf_counter()
        Registry(models).heal()
        times.append(1000 * (time.perf_counter() - began))
    median, limit = statistics.median(times), 15 if size < 5_000 else 120
    print(f"\n{size:,} entries, one writer: median {median:.1f} ms of {REPEATS}, {min(times):.1f} to {max(times):.1f}")
    assert median <= limit


def test_eight_writers_lose_nothing_and_each_is_done_in_time(models: Path) -> None:
    size = len(Registry(models).entries())
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, registry_writers.__file__, str(models), "8"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    result = json.loads(done.stdout)
    slowest, limit = max(result["seconds"]), 2 if size < 5_000 else 10
    print(f"\n{size:,} entries, 8 writers: slowest {slowest:.2f} s, fastest {min(result['seconds']):.2f} s, none lost")
    assert result["lost"] == []
    assert len(result["seconds"]) == 8
    assert slowest <= limit


def test_the_file_is_compact(models: Path) -> None:
    text = (models / "registry.json").read_bytes()
    entries = len(Registry(models).entries())
    print(f"\n{entries:,} entries: {len(text) / entries:.0f} bytes an entry")
    assert text == json.dumps(json.loads(text), separators=(",", ":")).encode()
