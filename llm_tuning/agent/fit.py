"""Whether an adapter fits the engine, before it is loaded: refused with both sides named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_tuning.agent.weights import find_weight_fault
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.core.files import read_json
from llm_tuning.engines.plan import EnginePlan
from llm_tuning.engines.vllm.adapter import ServedAdapter, inspect_adapter
from llm_tuning.engines.vllm.tensor_names import name_faults
from llm_tuning.errors import InputError
from llm_tuning.models.adapter import SMALL_FILE_BYTES, trained_base
from llm_tuning.models.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PARITY


@dataclass(frozen=True)
class Misfit:
    """Why it must not be loaded, and what would be right."""

    reason: AdapterReason
    message: str


def find_misfit(path: Path, plan: EnginePlan) -> Misfit | None:
    """Find why the adapter in a folder does not fit, None if it does. Reads its weights and compares their hash."""
    name = path.name
    if not path.is_dir():
        return Misfit(
            AdapterReason.ADAPTER_NOT_FOUND,
            f"there is no models/{name} on the claim; name a finished adapter (tune_llm.py registry list)",
        )
    if plan.without_lora:
        return Misfit(AdapterReason.BASE_WITHOUT_LORA, f"{plan.without_lora}: the base is served alone")
    try:
        adapter = inspect_adapter(path, None)
    except InputError as error:
        return Misfit(AdapterReason.ADAPTER_INVALID, "; ".join(str(problem) for problem in error.problems))
    if adapter.model_id != name:
        return Misfit(
            AdapterReason.ADAPTER_INVALID,
            f"models/{name} holds the adapter {adapter.model_id} by its model.json: restore its own files",
        )
    if (other := _probes_of(path)) not in ("", name):
        return Misfit(
            AdapterReason.ADAPTER_INVALID,
            f"models/{name} holds the probes of {other} by its parity.json: restore its own files",
        )
    if (mismatch := _of_engine(path, adapter, plan)) is not None:
        return mismatch
    if (fault := find_weight_fault(path)) is not None:
        return Misfit(AdapterReason.ADAPTER_INVALID, f"models/{name}/{ADAPTER_WEIGHTS} {fault}")
    if adapter.chat_template is not None and adapter.chat_template.strip() != plan.template.strip():
        return Misfit(
            AdapterReason.TEMPLATE_MISMATCH,
            f"{name} was trained with its own chat_template.jinja, this engine renders with "
            f"{plan.template_source}, another one; give the base the template of the training, or train again",
        )
    return None


def _of_engine(path: Path, adapter: ServedAdapter, plan: EnginePlan) -> Misfit | None:
    """Find what of an adapter the engine was not started for: its base, its rank, its layers."""
    name = path.name
    trained = trained_base(path)
    if trained.weight_hash and trained.weight_hash != plan.base_hash:
        return Misfit(
            AdapterReason.BASE_MISMATCH,
            f"{name} was trained on {trained.name or 'another base'} (weights {trained.weight_hash[:12]}), this engine "
            f"serves {plan.base_name} (weights {plan.base_hash[:12]}); serve it on the base that it was trained on",
        )
    if adapter.max_rank > plan.max_lora_rank:
        return Misfit(
            AdapterReason.RANK_TOO_HIGH,
            f"{name} has rank {_rank(path)}, this engine was started for at most {plan.max_lora_rank}; set "
            f"spec.vllm.maxLoraRank to {adapter.max_rank}, which is a rollout",
        )
    if faults := name_faults(adapter.names, plan.lookup):
        told = "; ".join(f"{rule}; {fix}" for rule, fix in faults)
        return Misfit(AdapterReason.TARGET_MODULES_MISMATCH, f"{name} {told}")
    foreign = sorted(set(adapter.modules) - set(plan.target_modules))
    if foreign:
        return Misfit(
            AdapterReason.TARGET_MODULES_MISMATCH,
            f"{name} changes {', '.join(foreign)}, this engine was prepared for {', '.join(plan.target_modules)}; "
            "restart the pods with this adapter in a route, or train without these modules",
        )
    return None


def _probes_of(path: Path) -> str:
    """Read the model_id in parity.json, empty where there is none."""
    parity = read_json(path / PARITY, most=SMALL_FILE_BYTES) or {}
    return str(parity.get("model_id") or "")


def _rank(path: Path) -> int:
    config = read_json(path / ADAPTER_CONFIG, most=SMALL_FILE_BYTES) or {}
    return max(int(rank) for rank in (config.get("r", 0), *(config.get("rank_pattern") or {}).values()))
