"""The manifest of a model (`model.json`): what it is, what it was made of, and the hash of every file beside it.

It is read leniently: unknown fields are kept and most fields may be absent, so that an older version neither refuses
nor loses what a newer one wrote. A directory that holds a manifest is whole; see `publish`.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llm_tuning.api import TuningConfig
from llm_tuning.core.files import file_hash, read_file, write_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import ADAPTER_WEIGHTS, MANIFEST
from llm_tuning.modes import MODES
from llm_tuning.sources.store import source_at


class Record(BaseModel):
    """A part of a manifest."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class FromSource(Record):
    """Where something was fetched from, once it lay on the disk: what `tune-llm sources fetch` gives again."""

    uri: str
    commit: str
    selection: str = ""
    """The file or `split=NAME` of a data set repository; "" is all that is taken of it."""
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of each file, by its path in the source."""

    @classmethod
    def of(cls, path: str) -> FromSource | None:
        """Read where the file or folder `path` was fetched from; None where it was not."""
        found = source_at(path)
        if found is None:
            return None
        record = found.record
        hashes = {name: file.sha256 for name, file in record.files.items()}
        return cls(uri=record.uri, commit=record.commit, selection=record.selection, files=hashes)


class BaseRecord(Record):
    """The base model that the adapter belongs to."""

    path: str
    name: str
    weight_hash: str
    size: int | None = None
    """Bytes of the weight files, where known."""
    source: FromSource | None = None


class StartAdapterRecord(Record):
    """The adapter that training started from."""

    model_id: str
    weight_hash: str


class RowsRecord(Record):
    """A file of rows. `hash` is over its bytes."""

    path: str
    hash: str
    rows: int = 0
    kept: int = 0
    refused: int = 0
    source: FromSource | None = None


class DatasetRecord(RowsRecord):
    """The training rows; the whole report of their check is beside the counts."""

    evaluation: RowsRecord | None = None
    """The rows of `dataset.evaluation`, where it was given."""


class MlflowRecord(Record):
    """Where MLflow has the run."""

    run_id: str
    uri: str = ""
    experiment: str = ""


class AdapterRecord(Record):
    """What the adapter changes."""

    modules: list[str] = Field(default_factory=list)
    """Last name parts of the layers that have a LoRA."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Why other layers of the language model have none, by last name part; empty where names were given."""
    model_class: str = "AutoModelForCausalLM"
    """The class of transformers on which plain PEFT finds the place of every tensor."""


class TrainingRecord(Record):
    """How the training went; `tokens` counts real ones, `stopped_early` says why it ended before its last step.

    `loss` is that of the last step, None where it is no number or the mode has no such metric.
    """

    steps: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    loss: float | None = None
    stopped_early: str | None = None


class HardwareRecord(Record):
    """What the run was computed on, and how well it used it; memory and figures are those of one device."""

    device: str
    """The card's name as CUDA has it, or the processor's."""
    driver: str | None = None
    precision: str = ""
    """bf16 or fp32: what `training.precision` came to."""
    padding_free: bool | None = None
    """Whether rows lay end to end in a micro-batch; None in manifests that do not say."""
    attention: str = ""
    """What computed attention, and why nothing better did: a faster kernel, or one that keeps rows apart."""
    sharding: str = ""
    """Who had what of the base, and why; empty with one device, and in manifests that do not say."""
    peak_memory: int | None = None
    """Bytes, of the device with most: on a GPU what torch had allocated at once, on a CPU the process's resident set.
    Of the start that ended the run: an earlier one may have been somewhere else."""
    reserved_memory: int | None = None
    """Bytes that torch's allocator held on the GPU, fragmentation included; what others see as used, but for the
    context."""
    teraflops: float | None = None
    """10^12 operations of training a second, as `models.operations` counts them; None where they cannot be counted."""
    mfu: float | None = None
    """`teraflops` over the card's peak in bf16; None in fp32 and on devices whose peak is not known."""


class Manifest(Record):
    """Everything about one finished adapter that must never be lost. Names on disk are those of the fields."""

    model_id: str
    model_name: str = ""
    mode: str
    created_at: str = ""
    """ISO 8601, UTC, whole seconds."""
    base: BaseRecord
    start_adapter: StartAdapterRecord | None = None
    adapter: AdapterRecord | None = None
    """None in older manifests."""
    configuration: dict[str, Any] = Field(default_factory=dict)
    """The TuningConfig, complete, by its aliases (camelCase)."""
    config_hash: str = ""
    dataset: DatasetRecord | None = None
    template_hash: str = ""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """The held-out evaluation, as in `evaluation.json`."""
    mlflow: MlflowRecord | None = None
    mlflow_fault: str | None = None
    """Why the run was not in MLflow yet when this was written; it may have got there afterwards."""
    library_versions: dict[str, str] = Field(default_factory=dict)
    training: TrainingRecord | None = None
    hardware: HardwareRecord | None = None
    """None in manifests of 0.1."""
    devices: list[str] = Field(default_factory=list)
    description: str = ""
    tags: list[str] = Field(default_factory=list)
    files: dict[str, str] = Field(default_factory=dict)
    """sha256 of every other file, by its path in the directory; `publish` fills it in."""
    size: int = 0
    """Bytes of those files together; `publish` fills it in."""

    @property
    def weight_hash(self) -> str:
        """sha256 of the adapter's weights, empty where there are none."""
        return self.files.get(ADAPTER_WEIGHTS, "")

    @property
    def on_four_bits(self) -> bool:
        """Whether the base was quantised while it was trained and evaluated on."""
        return bool((self.configuration.get("model") or {}).get("quantization", "none") != "none")


def hardware_line(hardware: HardwareRecord) -> str:
    """Say in one line what a run was computed on and how well it used it; figures that are not known are left out."""
    driver = f" (driver {hardware.driver})" if hardware.driver else ""
    parts = [f"{hardware.device}{driver}", hardware.precision]
    if hardware.peak_memory is not None:
        reserved = hardware.reserved_memory
        held = f" of {reserved / 2**30:.1f} GiB reserved" if reserved is not None else ""
        parts.append(f"peak memory {hardware.peak_memory / 2**30:.1f} GiB{held}")
    if hardware.teraflops is not None:
        parts.append(f"{hardware.teraflops:g} TFLOP/s")
    if hardware.mfu is not None:
        parts.append(f"MFU {hardware.mfu:.1%}")
    if hardware.padding_free is not None:
        parts.append(f"{'padding-free' if hardware.padding_free else 'rows padded'} (attention: {hardware.attention})")
    parts.append(hardware.sharding)
    return ", ".join(part for part in parts if part)


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of `folder`, None where there is none; raises InputError when it is not a valid one."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(read_file(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(Problem(str(path), f"cannot be read ({error.strerror})")) from None
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in detail["loc"])
        rule = f"is not a valid model.json ({f'{field}: ' if field else ''}{detail['msg']})"
        raise InputError(Problem(str(path), rule, "copy the directory again, or remove it")) from None


def read_model(folder: Path) -> Manifest | None:
    """Read the manifest of the model that `folder` is, or None; raises InputError where it names another (a copy)."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.model_id != folder.name:
        rule = f"{MANIFEST} says model_id {manifest.model_id}, but the folder has another name"
        raise InputError(Problem(str(folder), rule, f"rename the folder to {manifest.model_id}, or move it elsewhere"))
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder` in one step. Values that JSON lacks (NaN, infinity) become null."""
    write_json(folder / MANIFEST, json.loads(manifest.model_dump_json()))


def file_hashes(folder: Path) -> dict[str, str]:
    """Hash every file under `folder` but the manifest: sha256 (hex) by relative path with `/`, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in paths}


def utc_now() -> str:
    """Return the time now as `created_at` has it: ISO 8601 in UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def deciding_settings(config: TuningConfig, devices: int) -> dict[str, Any]:
    """Return the settings that decide the weights; a default and the same value written out are alike.

    `devices` is the number of data-parallel processes. It counts only through the rows of one optimizer step: batch 8
    on one device and batch 4 on two are the same run, batch 8 on two is another. Which devices they are does not count.

    Left out, and why:
    - training.max_tokens_per_pass, training.gradient_checkpointing, training.sharding: memory and speed; the same sums
      come out.
    - training.save_steps: a resumed run equals an uninterrupted one.
    - training.eval_steps where an evaluation only looks; it counts in a mode that an evaluation can stop.
    - lora.dropout in a mode that trains without.
    - The settings of other modes.
    - model.path, dataset.path, dataset.evaluation: their contents count, by hash. dataset.skip_invalid_rows: the rows
      that are left are in the data hash, and without it a file with invalid rows never trains.
    - tracking.*.

    `training.precision` counts as written: what `auto` turns into is known only on the device. Settings that came later
    (`learn`, `learn_reasoning`, `columns`) count where they are set, so that runs of before keep their hash.
    """
    training, lora, mode = config.training, config.lora, MODES[config.mode]
    decides: dict[str, Any] = {
        "mode": config.mode,
        "quantization": config.model.quantization,
        "training": {
            "epochs": training.epochs,
            "max_steps": training.max_steps,
            "learning_rate": training.resolved_learning_rate(config.mode),
            "lr_scheduler_type": training.lr_scheduler_type,
            "warmup_ratio": training.warmup_ratio,
            "weight_decay": training.weight_decay,
            "max_grad_norm": training.max_grad_norm,
            "effective_batch_size": training.effective_batch_size(devices),
            "max_length": training.max_length,
            "precision": training.precision,
            "eval_fraction": training.eval_fraction,
            "seed": training.seed,
        },
        "lora": {
            "rank": lora.rank,
            "alpha": lora.alpha,
            "target_modules": sorted(set(lora.target_modules.split(","))),
        },
    }
    if training.learn != "all":
        decides["training"]["learn"] = training.learn
    if not training.learn_reasoning:
        decides["training"]["learn_reasoning"] = False
    if config.dataset.columns:
        decides["dataset"] = {"columns": dict(config.dataset.columns)}
    if mode.evaluation_decides:
        decides["training"]["eval_steps"] = training.eval_steps
    if mode.uses_dropout:
        decides["lora"]["dropout"] = lora.dropout
    if mode.settings is not None:
        decides[mode.name] = mode.settings_of(config).model_dump()
    return decides


def config_hash(
    config: TuningConfig,
    *,
    base_weight_hash: str,
    data_hash: str,
    template_hash: str,
    start_adapter_weight_hash: str | None,
    devices: int,
    evaluation_hash: str | None = None,
) -> str:
    """Hash what decides the result, `deciding_settings` and the contents that the run starts from: sha256 (hex).

    `evaluation_hash` is that of the rows of `dataset.evaluation`, which decide the scores; None without them.
    """
    decides = deciding_settings(config, devices)
    decides |= {
        "hash_version": 1,
        "base": {"weights": base_weight_hash, "quantization": decides.pop("quantization")},
        "data": data_hash,
        "template": template_hash,
        "start_adapter": start_adapter_weight_hash,
    }
    if evaluation_hash is not None:
        decides["evaluation"] = evaluation_hash
    text = json.dumps(decides, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
