"""Asks vLLM's own code, in vLLM's environment, what its LoRA does with a base or an adapter; nothing is generated.

    .venv-vllm/bin/python -P tests/support/vllm_lora.py registry                 # which architectures support LoRA
    .venv-vllm/bin/python -P tests/support/vllm_lora.py reach BASE...            # which layers of each a LoRA reaches
    .venv-vllm/bin/python -P tests/support/vllm_lora.py load BASE ADAPTER...     # which of its tensors arrive

The answer is JSON on the last line: an object, for `load` a list in the order of the pairs.

The model is built by vLLM's class (no weights are read), wrapped by its LoRA manager, and the adapter goes through the
code that a server runs at /v1/load_lora_adapter, up to the layers' own buffers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
RANK = 64


def registry() -> dict[str, bool]:
    """Return every architecture that vLLM has for text generation, and whether its class supports LoRA."""
    from vllm.model_executor.models import registry as table
    from vllm.model_executor.models.interfaces import supports_lora

    named = {
        **table._TEXT_GENERATION_MODELS,
        **table._MULTIMODAL_MODELS,
        **table._TRANSFORMERS_SUPPORTED_MODELS,
    }
    found = {}
    for architecture, (module, name) in sorted(named.items()):
        full = module if module.startswith("vllm.") else f"vllm.model_executor.models.{module}"
        try:
            found[architecture] = bool(supports_lora(getattr(importlib.import_module(full), name)))
        except Exception as error:
            print(f"{architecture}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    return found


def build(base: str) -> tuple[Any, Any, Any]:
    """Return vLLM's configuration, its model, and the LoRA manager of a worker around it."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.distributed.parallel_state import destroy_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora import model_manager
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.model_executor.models import registry as models

    wrapped = model_manager.is_supported_lora_module
    if not hasattr(model_manager, "_with_experts"):  # its CPU build has no LoRA layer for fused experts, and would end
        model_manager._with_experts = wrapped
        model_manager.is_supported_lora_module = lambda name, module, names: (
            not isinstance(module, model_manager.MoERunner) and wrapped(name, module, names)
        )
    models._run_in_subprocess = lambda look: (
        look()
    )  # it looks at each class in a process of its own, which imports vLLM
    config = EngineArgs(
        model=base,
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=RANK,
        max_model_len=256,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        limit_mm_per_prompt={"image": 0, "video": 0, "audio": 0},
    ).create_engine_config()
    with set_current_vllm_config(config):
        store = Path(tempfile.mkdtemp(), "store")
        init_distributed_environment(1, 0, f"file://{store}", 0, "gloo")
        destroy_model_parallel()  # of the base before: one of experts needs a group that others have not
        initialize_model_parallel(1, 1)
        torch.set_default_dtype(torch.bfloat16)
        model = initialize_model(vllm_config=config)
        torch.set_default_dtype(torch.float32)
        worker = LRUCacheWorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
        worker.create_lora_manager(model, config)
    return config, model, worker


def served(manager: Any) -> dict[str, str]:
    """Return the names that a tensor of an adapter may have after vLLM's own renaming: vLLM's layer by name."""
    names = {name: name for name in manager.modules if name not in manager.packed_modules}
    for layer, parts in manager.packed_modules.items():
        names |= dict.fromkeys(parts, layer)
    return names


def reach(base: str) -> dict[str, Any]:
    """Say for each linear layer of transformers' model of `base` under which name its LoRA reaches vLLM's layer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from vllm.lora.utils import parse_fine_tuned_lora_name

    hf_config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):  # first: where vLLM has no class of its own it changes that of transformers
        hf = AutoModelForCausalLM.from_config(hf_config)
    _, model, worker = build(base)
    manager = worker._adapter_manager
    names = served(manager)
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    mapper = mapper.get_rename_mapper() if mapper is not None else None

    def reached(name: str) -> bool:
        target, _ = parse_fine_tuned_lora_name(f"base_model.model.{name}.lora_A.weight", mapper)
        return target in names

    linears = {}
    for name, module in hf.named_modules():
        if isinstance(module, torch.nn.Linear):
            inner = name.removeprefix("model.").removeprefix("language_model.")
            ways = (name, f"model.language_model.{inner}", f"language_model.model.{inner}")
            linears[name] = next((way for way in ways if reached(way)), None)
    fused = [name for name, value in hf.named_parameters() if value.ndim == 3 and ".layers." in name]
    return {
        "class": type(model).__name__,
        "trained": type(hf).__name__,
        "linears": linears,
        "fused": fused,
        "fused_in_pefts_form": bool(getattr(manager, "_is_3d_moe_model", False)),
        "layers": sorted(names),
    }


def load(base: str, adapter: str) -> dict[str, Any]:
    """Load `adapter` as a server does; say which tensors of it reach a layer and which are dropped without a word."""
    from vllm.lora.request import LoRARequest

    _, _, worker = build(base)
    manager = worker._adapter_manager
    lora = worker._load_adapter(LoRARequest("adapter", 1, adapter))
    given = sorted(lora.loras)
    names = served(manager)
    fused = {f"{name}.base_layer" for name in manager.modules if name.endswith(".experts")}
    manager.add_adapter(lora)
    manager.activate_adapter(1)
    lost = [name for name in given if name not in names and name not in manager.modules and name not in fused]
    return {"given": given, "lost": lost}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", choices=["registry", "reach", "load"])
    parser.add_argument("folders", nargs="*")
    asked = parser.parse_args()
    answers = {
        "registry": registry,
        "reach": lambda: {base: _or_error(reach, base) for base in asked.folders},
        "load": lambda: [_or_error(load, *pair) for pair in zip(asked.folders[::2], asked.folders[1::2], strict=True)],
    }
    print(json.dumps(answers[asked.question]()))


def _or_error(answer: Callable[..., dict[str, Any]], *folders: str) -> dict[str, Any]:
    """Return the answer, or vLLM's own refusal of this base or adapter."""
    try:
        return answer(*folders)
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
