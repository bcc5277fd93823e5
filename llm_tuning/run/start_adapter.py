"""The adapter that a run starts from: finished, as it was published, and of the same base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.api import LoraSpec, TuningConfig
from llm_tuning.api.tuning import ALL_LINEAR
from llm_tuning.core.files import file_hash, read_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.adapter import adapted_modules, adapted_paths, unserved_features
from llm_tuning.models.base import BaseModel, read_config
from llm_tuning.models.families import EXPERTS_MODULE, family_of, in_layer
from llm_tuning.models.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from llm_tuning.models.manifest import Manifest, read_manifest
from llm_tuning.models.targets import last
from llm_tuning.run.checks import ADAPTER, TARGETS


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


def lora_of(start: StartAdapter, asked: LoraSpec, base: BaseModel) -> LoraSpec:
    """Return the start adapter's own shape; raises InputError where it cannot be gone on from, or a setting differs.

    What LoraSpec has no word for (patterns of ranks, layers, parameters) training reads from the adapter itself.
    """
    adapter = read_json(start.path / ADAPTER_CONFIG)
    modules = sorted(adapted_modules(start.path))
    has = {"rank": adapter["r"], "alpha": adapter["lora_alpha"], "target_modules": ",".join(modules)}
    problems = [*_not_served(start, adapter, modules, asked, base), *_other_modules(start, modules, asked)]
    problems += [
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
    return LoraSpec.parse(has | {"dropout": asked.dropout}, where=f"start adapter {start.manifest.model_id}: lora")


def _not_served(
    start: StartAdapter, adapter: dict[str, Any], modules: list[str], asked: LoraSpec, base: BaseModel
) -> list[Problem]:
    """List what keeps vLLM from serving the start adapter, and so what would be trained from it."""
    where, family = start.manifest.model_id, family_of(read_config(base.path))
    fix = "start from an adapter without it, or from the base"
    problems = [
        Problem(ADAPTER, f"{where} has {name}, which vLLM does not serve", fix) for name in unserved_features(adapter)
    ]
    experts = EXPERTS_MODULE in modules and family.fused_experts
    foreign = [name for name in modules if name not in family.modules and not (name == EXPERTS_MODULE and experts)]
    foreign += [] if foreign else sorted({name for name in adapted_paths(start.path) if in_layer(name) is None})[:3]
    if foreign:
        rule = f"{where} trains {', '.join(foreign)}, whose LoRA vLLM does not serve on this base"
        problems.append(Problem(ADAPTER, rule, fix))
    if experts and asked.dropout and not problems:
        rule = f"is {asked.dropout:g}, but {where} trains experts, on which PEFT has no dropout"
        problems.append(Problem("lora.dropout", rule, "{set:lora.dropout=0}"))
    return problems


def _other_modules(start: StartAdapter, modules: list[str], asked: LoraSpec) -> list[Problem]:
    """Return a problem where other modules were asked for than the start adapter has."""
    if asked.target_modules == ALL_LINEAR or {last(name) for name in asked.target_modules.split(",")} == set(modules):
        return []
    rule = f"is {asked.target_modules} but the start adapter {start.manifest.model_id} has {','.join(modules)}"
    return [Problem(TARGETS, rule, "leave it out: training continues with the adapter's own")]
