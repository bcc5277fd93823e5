"""The adapter that a run starts from: finished, as it was published, and of the same base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_tuning.api import LoraSpec, TuningConfig
from llm_tuning.core.files import file_hash, read_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import BaseModel
from llm_tuning.models.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llm_tuning.models.manifest import Manifest, read_manifest
from llm_tuning.run.checks import ADAPTER


@dataclass(frozen=True)
class StartAdapter:
    """A finished adapter and what its manifest says."""

    path: Path
    manifest: Manifest


def find_start_adapter(config: TuningConfig, output_dir: Path) -> StartAdapter | None:
    """Find the adapter that `config` names, None where it names none; raises InputError where it is not whole."""
    if config.model.adapter is None:
        return None
    model_id = config.model.adapter.model_id
    folder = output_dir / model_id
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            Problem(
                ADAPTER,
                f"{model_id!r} is no finished adapter in {output_dir}",
                "see {command:registry list} for those that are",
            )
        )
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file() or file_hash(folder / name) != manifest.files.get(name):
            raise InputError(
                Problem(
                    ADAPTER,
                    f"{folder / name} is not the file that {model_id} was published with",
                    "copy the adapter again, or choose another",
                )
            )
    return StartAdapter(folder, manifest)


def check_belongs(start: StartAdapter, base: BaseModel, base_hash: str, template: str) -> None:
    """Raise InputError where the adapter was trained on another base than this, or with another template."""
    of = start.manifest
    if of.base.weight_hash != base_hash:
        raise InputError(
            Problem(
                ADAPTER,
                f"{of.model_id} belongs to base {of.base.name} (weights {of.base.weight_hash[:12]}), "
                f"not to {base.name} (weights {base_hash[:12]})",
                "give the base it was trained on, or another adapter",
            )
        )
    if of.template_hash != template:
        raise InputError(
            Problem(
                ADAPTER,
                f"{of.model_id} was trained with another chat template ({of.template_hash[:12]}, "
                f"the base now has {template[:12]})",
                "restore the base's chat template",
            )
        )


def lora_of(start: StartAdapter, asked: LoraSpec) -> LoraSpec:
    """Return the start adapter's own shape; raises InputError where an explicit setting differs from it."""
    adapter = read_json(start.path / ADAPTER_CONFIG)
    targets = adapter["target_modules"]
    has = {
        "rank": adapter["r"],
        "alpha": adapter["lora_alpha"],
        "target_modules": targets if isinstance(targets, str) else ",".join(sorted(targets)),
    }
    problems = [
        Problem(
            f"lora.{name}",
            f"is {getattr(asked, name)} but the start adapter {start.manifest.model_id} has {value}",
            "leave it out: training continues with the adapter's own",
        )
        for name, value in has.items()
        if name in asked.model_fields_set and name != "target_modules" and getattr(asked, name) != value
    ]
    if problems:
        raise InputError(problems)
    return LoraSpec(**has, dropout=asked.dropout)
