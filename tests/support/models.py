"""Published models without a training run, for tests of what comes after one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llm_tuning.api import TuningConfig
from llm_tuning.models.base import inspect_base, weight_hash
from llm_tuning.models.manifest import BaseRecord, Manifest
from llm_tuning.models.publish import publish
from llm_tuning.run.spec import RunSpec


def make_manifest(model_id: str, **fields: Any) -> Manifest:
    """A manifest of an sft adapter of `base/tiny`, with `fields` in place of the defaults."""
    defaults: dict[str, Any] = {
        "model_name": "tiny sft",
        "mode": "sft",
        "created_at": "2026-11-24T20:00:00Z",
        "base": BaseRecord(path="base/tiny", name="tiny", weight_hash="ba5e" * 16),
        "configuration": {"training": {"epochs": 2, "batchSize": 4}},
        "config_hash": hashlib.sha256(model_id.encode()).hexdigest(),
        "metrics": {"source": "held_out", "base": {"loss": 2.5}, "tuned": {"loss": 1.25}},
        "tags": ["sft"],
    }
    return Manifest(model_id=model_id, **{**defaults, **fields})


def make_stage(models: Path, model_id: str, weights: bytes = b"weights") -> Path:
    """A finished stage in the work folder of `model_id`."""
    stage = models / ".work" / model_id / "stage"
    stage.mkdir(parents=True)
    (stage / "adapter_model.safetensors").write_bytes(weights)
    (stage / "adapter_config.json").write_text("{}")
    return stage


def publish_model(models: Path, model_id: str, *, weights: bytes = b"weights", **fields: Any) -> Manifest:
    """Publish a model of two small files into `models`."""
    return publish(make_stage(models, model_id, weights), models / model_id, make_manifest(model_id, **fields))


def publish_two(models: Path) -> None:
    """Fill `models` with an older sft and a newer ppo adapter of one base, `base/tiny`, and a hand-made entry."""
    models.mkdir()
    (models / "registry.json").write_text('{"models":[{"model_id":"by-hand","model_type":"external"}]}')
    base = make_light_base(Path("base/tiny"))
    publish_model(models, "first", base=base)
    no_held_out = {"source": "none", "base": None, "tuned": None}
    publish_model(models, "second", base=base, mode="ppo", created_at="2026-11-25T08:00:00Z", metrics=no_held_out)


def make_light_base(path: Path) -> BaseRecord:
    """A base model by its looks (config, tokenizer, safetensors without a tensor), made without torch."""
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (path / "tokenizer.json").write_text("{}")
    (path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    base_hash = weight_hash(inspect_base(path), path.parent / f".{path.name}.hash")
    return BaseRecord(path=str(path), name=path.name, weight_hash=base_hash)


def index_of(models: Path) -> dict[str, Any]:
    """`registry.json` as it is on the disk."""
    document: dict[str, Any] = json.loads((models / "registry.json").read_bytes())
    return document


def write_index(models: Path, document: object) -> None:
    """Write `registry.json`; text as it is."""
    (models / "registry.json").write_text(document if isinstance(document, str) else json.dumps(document))


def start_run(models: Path, model_id: str, **training: Any) -> Path:
    """The work folder of a run that was started."""
    return write_run(models, model_id, training=training).work


def write_run(models: Path, model_id: str, **config: Any) -> RunSpec:
    """Write the run.json of a run that was started; `config` beside its paths."""
    spec = RunSpec(
        model_id=model_id,
        config=TuningConfig.parse({"model": {"path": "b"}, "dataset": {"path": "d"}, **config}),
        config_hash="c",
        devices=["cpu"],
        output_dir=models,
        base_name="b",
        base_weight_hash="w",
        template_hash="t",
        data_hash="d",
        start_adapter=None,
        start_adapter_hash=None,
        created=1,
    )
    spec.work.mkdir(parents=True, exist_ok=True)
    spec.write()
    return spec
