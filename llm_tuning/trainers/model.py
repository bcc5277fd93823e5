"""A frozen base with a LoRA adapter: loading, attaching, switching the adapter off, and its arithmetic.

The trainable adapter is named "default". A run that begins at an existing adapter also holds a frozen copy of
it, "start": it is the policy that results are measured against, and the reference of modes that have one.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_tuning.api.tuning import ALL_LINEAR
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.families import Servable, in_layer, trained_name
from llm_tuning.models.targets import FIELD, is_asked, last
from llm_tuning.trainers.dropout import share_dropout

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

TRAINED = "default"
START = "start"


def load_base_model(
    base: Path,
    *,
    device: str,
    dtype: torch.dtype,
    quantization: str = "none",
    attn_implementation: str | None = None,
    sharded: bool = False,
    copies: int = 1,
) -> PreTrainedModel:
    """Load the base from local safetensors, frozen, onto `device`; never code from its folder.

    `quantization` "4bit" is bitsandbytes' NF4 with double quantisation, as in the QLoRA paper (arXiv 2305.14314); its
    products are computed in `dtype`. Without `attn_implementation` transformers chooses: sdpa where the architecture
    has it.
    A GPU gets the weights tensor by tensor, read, cast and copied: host memory holds one of them at a time. Where it is
    `sharded`, over all ranks or in several `copies`, each reads its own slices of them (`trainers.sharding`).
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from llm_tuning.trainers.sharding import sharded_loading

    options: dict[str, Any] = {}
    if quantization == "4bit":
        options["quantization_config"] = _four_bit(dtype)
    if quantization == "4bit" or device.startswith("cuda"):
        options["device_map"] = {"": device}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    whole: AbstractContextManager[dict[str, Any]] = nullcontext({})
    loading = sharded_loading(device, copies) if sharded else whole
    try:
        with _no_progress_bar(), loading as of_sharding:
            model, found = AutoModelForCausalLM.from_pretrained(
                base,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, in one sentence
                output_loading_info=True,
                **options,
                **of_sharding,
            )
    except InputError:  # of sharding
        raise
    except (ValueError, OSError, SafetensorError) as error:
        first_sentence = str(error).strip().split("\n")[0][:300]
        raise InputError(Problem("model.path", f"{base} cannot be loaded: {first_sentence}")) from None
    except RuntimeError as error:
        if (said := _while_converting(error)) is None:
            raise
        raise RuntimeError(f"{base} cannot be loaded: {said}") from error
    # transformers would continue with random numbers in their place
    unusable = sorted(found["missing_keys"]) + sorted(key for key, *_ in found["mismatched_keys"])
    if unusable:
        raise InputError(
            Problem("model.path", f"the weights in {base} lack {unusable[0]}, or have it in another shape")
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    if quantization == "4bit":
        _keep_differentiable(model)
    return model


def _while_converting(error: RuntimeError) -> str | None:
    """Return what went wrong as transformers merged or quantised weights while loading; None where nothing did.

    It catches any error there, memory that runs out among them, and raises one that points to a report in its log.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        errors = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if errors:
            first: str = next(iter(errors.values()))
            return first.rpartition("\nError")[0].splitlines()[-1]
    return None


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Draw no bar while loading; afterwards bars are as the caller had them."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _four_bit(dtype: torch.dtype) -> object:
    try:
        import bitsandbytes  # noqa: F401 - asked for here, so that its absence is one sentence
    except ImportError:
        raise InputError(
            Problem(
                "model.quantization", "4bit needs bitsandbytes, which is not installed", "install llm-tuning[qlora]"
            )
        ) from None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking the weights of `model` for inference at the first evaluation on a CPU.

    On CPUs with AVX-512 BF16 it does so in place, and the product of packed weights passes no gradient on.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def attach_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    target_modules: str | Sequence[str],
    start_adapter: Path | None = None,
    family: Servable | None = None,
    seed: int,
) -> PeftModel:
    """Put a trainable LoRA adapter in fp32 on `model`; it starts at `start_adapter`'s weights, or at no change at all.

    A fresh adapter's weights depend on `seed` only. `target_modules` is PEFT's; see `linear_targets`. With
    `start_adapter`, whose rank and alpha must be the ones asked for, all its configuration is taken (modules,
    parameters, patterns), and a frozen copy of it is there as "start". `family` tells its tensors' names.
    """
    from peft import LoraConfig, get_peft_model

    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    if start_adapter is not None:
        config = _config_of(start_adapter, rank=rank, alpha=alpha, dropout=dropout)
    else:
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none", task_type="CAUSAL_LM"
        )
    torch.manual_seed(seed)
    try:
        peft_model = get_peft_model(model, config)
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        wanted = targets if isinstance(targets, str) else ",".join(targets)
        raise InputError(Problem(FIELD, f"{wanted} names no linear module of this model", "use all-linear")) from None
    _refuse_embeddings(peft_model)
    if start_adapter is not None:
        frozen = _config_of(start_adapter, rank=rank, alpha=alpha, dropout=0.0)
        frozen.inference_mode = True
        peft_model.add_adapter(START, frozen)
        for name in (START, TRAINED):
            read_adapter(peft_model, start_adapter, name, family)
        peft_model.set_adapter(TRAINED)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    share_dropout(peft_model, TRAINED)
    peft_model.train()  # PEFT leaves a wrapper that trains around a base that does not: without dropout
    return peft_model


def _refuse_embeddings(model: PeftModel) -> None:
    """Raise InputError for LoRA on embeddings: not every vLLM serves it, and the losses need a frozen output layer."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if hasattr(layer, "lora_A"):
            name = next(name for name, module in model.get_base_model().named_modules() if module is layer)
            rule = f"includes {name} (embeddings or output layer), which LoRA does not train here"
            raise InputError(Problem(FIELD, rule, "leave it out, or use all-linear"))


def linear_targets(model: PreTrainedModel, family: Servable, asked: str) -> list[str]:
    """List the names of the linear layers of the language model that get a LoRA, by what `lora.targetModules` asks for.

    Raises InputError where that is none. `all-linear` is not PEFT's, which takes towers, and experts with their router.
    """
    served = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and in_layer(name) is not None and last(name) in family.modules
    ]
    wanted = asked.split(",")
    targets = served if asked == ALL_LINEAR else [name for name in served if is_asked(name, wanted)]
    if not targets:
        raise InputError(Problem(FIELD, f"{asked} names no linear module of this model", "use all-linear"))
    return targets


def read_adapter(model: PeftModel, folder: Path, name: str, family: Servable | None) -> None:
    """Read the weights in `folder`, whose names may be the server's, into the adapter `name` of `model`.

    They are read to the CPU: PEFT would read to CUDA wherever torch sees a GPU, also in a run on the CPU. Raises
    InputError where they are not all of the adapter's, or more.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(folder), device="cpu")
    if family is not None:
        weights = {trained_name(key, family): value for key, value in weights.items()}
    found = set_peft_model_state_dict(model, weights, adapter_name=name)
    lacking = [key for key in found.missing_keys if f".{name}." in key and ".lora_" in key]
    for keys, rule in ((found.unexpected_keys, "has weights this base has no place for"), (lacking, "lacks weights")):
        if keys:
            raise InputError(Problem(str(folder), f"{rule}: {keys[0]}"))


def _config_of(start_adapter: Path, *, rank: int, alpha: int, dropout: float) -> LoraConfig:
    """Read all of `start_adapter`'s configuration; raises InputError where its rank or alpha are not those given."""
    from peft import LoraConfig

    found = LoraConfig.from_pretrained(str(start_adapter))
    asked = {"rank": (found.r, rank), "alpha": (found.lora_alpha, alpha)}
    problems = [
        Problem(f"lora.{name}", f"is {wanted} but the start adapter has {has}", f"set lora.{name} to {has}")
        for name, (has, wanted) in asked.items()
        if has != wanted
    ]
    if problems:
        raise InputError(problems)
    found.inference_mode, found.lora_dropout = False, dropout
    return found


def causal_lm(model: Any) -> Any:
    """Return the transformers model inside a PEFT model; LoRA layers sit in it and keep working."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(causal_lm: Any) -> Any:
    """Return the part of a transformers model that gives hidden states: all but its output layer."""
    base = causal_lm.base_model
    return base if base is not causal_lm else causal_lm.model  # Llama 4 names its prefix otherwise


def autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    """Return a context that computes in bf16 where `dtype` says so; with fp32 it does nothing."""
    return torch.autocast(device.split(":", maxsplit=1)[0], dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def checkpoint_gradients(model: Any) -> None:
    """Recompute activations in the backward pass; transformers does so in training mode only."""
    causal_lm(model).activation_checkpointing_enable({"use_reentrant": False})


def silence_dropout(model: torch.nn.Module) -> None:
    """Set every dropout rate in the model to zero, in the base too.

    A ratio of two probabilities must not measure two dropout masks, and evaluation mode would end checkpointing.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


@contextmanager
def bare_base(model: PeftModel) -> Iterator[None]:
    """Switch off every adapter while the block runs."""
    with model.disable_adapter():
        yield


@contextmanager
def start_policy(model: PeftModel) -> Iterator[None]:
    """Switch to the start policy while the block runs: the frozen start adapter, or the bare base if there was none."""
    if START not in model.peft_config:
        with bare_base(model):
            yield
        return
    model.set_adapter(START, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(TRAINED)


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """Return the trained adapter under PEFT's own file names, fp32 on the CPU, names in order."""
    from peft import get_peft_model_state_dict

    weights = get_peft_model_state_dict(model, adapter_name=TRAINED, save_embedding_layers=False)
    return {name: weights[name].detach().float().cpu().contiguous() for name in sorted(weights)}
