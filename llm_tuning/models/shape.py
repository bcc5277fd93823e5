"""The sizes of a base model that memory and work depend on, from config.json and the headers of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.api.tuning import ALL_LINEAR, LoraSpec
from llm_tuning.core.files import read_json
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import SHARED_INPUTS, inspect_base, tensor_shapes
from llm_tuning.models.families import family_of, in_layer
from llm_tuning.models.targets import is_asked, last
from llm_tuning.models.trainable import check_trainable


@dataclass(frozen=True)
class Linear:
    """A weight matrix of a layer; `name` is its module's last word."""

    name: str
    layer: int
    inputs: int
    outputs: int
    share: float = 1.0
    """Of the tokens that go through it: an expert sees some only."""
    path: str = ""
    """The module's name from its layer on: `layers.0.self_attn.q_proj`."""

    @property
    def size(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """What is known of a base without loading it."""

    path: Path
    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    query: int
    """Heads times head size."""
    key: int
    """The same of keys, and of values."""
    intermediate: int
    norms: int
    """Elements that the norms of all layers, and the last one, read for each token."""
    linears: tuple[Linear, ...]
    head_is_plain: bool
    """No scale or soft cap after the output layer, as far as config.json says."""
    experts: int
    """0 for a dense model."""
    largest_layer: int = 0
    """Parameters of the layer with most, fused experts included; 0 where only the matrices are known."""
    served: tuple[str, ...] = ()
    """Names of the matrices on which a LoRA is served; none means all."""

    def targets(self, lora: LoraSpec) -> tuple[Linear, ...]:
        """Return the matrices that get an adapter; raises InputError where there are none."""
        served = tuple(
            linear
            for linear in self.linears
            if (linear.name in self.served and ".experts." not in linear.path) or not self.served
        )
        if lora.target_modules == ALL_LINEAR:
            return served
        asked = [_from_layer(name) for name in lora.target_modules.split(",")]
        found = tuple(linear for linear in served if is_asked(linear.path or linear.name, asked))
        if not found:
            known = ", ".join(sorted({linear.name for linear in served}))
            rule = f"{lora.target_modules} names no linear module of this model"
            raise InputError(Problem("spec.lora.targetModules", rule, f"it has {known}"))
        return found


def _from_layer(name: str) -> str:
    """Return a name that was asked for from its layer on, where it begins before that."""
    found = in_layer(name)
    return f"layers.{found[0]}.{found[1]}" if found else name


def adapter_parameters(targets: tuple[Linear, ...], rank: int) -> int:
    """Count LoRA's A (rank x inputs) and B (outputs x rank) of each matrix (arXiv 2106.09685, section 4.1)."""
    return sum(rank * (linear.inputs + linear.outputs) for linear in targets)


def distinct_inputs(linears: tuple[Linear, ...]) -> float:
    """Sum the elements of the matrices' inputs for a token; layers that read the same tensor count it once."""
    seen: dict[tuple[int, str], float] = {}
    for linear in linears:
        group = next((min(names) for names in SHARED_INPUTS if linear.name in names), linear.name)
        seen[linear.layer, group] = linear.inputs * linear.share
    return sum(seen.values())


def read_shape(folder: Path) -> ModelShape:
    """Read the shape of the base in `folder`; raises InputError where it is no base, or one of unknown sizes."""
    base = inspect_base(folder)
    check_trainable(base)
    whole: dict[str, Any] = read_json(folder / "config.json")
    config = whole.get("text_config") or whole
    hidden, layers, heads = (
        _size(folder, config, *names)
        for names in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"))
    )
    vocabulary = _size(folder, config, "vocab_size")
    head_size = int(config.get("head_dim") or hidden // heads)
    key_heads = int(config.get("num_key_value_heads") or heads)
    experts = int(config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts") or 0)
    active = int(config.get("num_experts_per_tok") or 1)
    shapes = tensor_shapes(base)
    linears = tuple(_linears(shapes, vocabulary, share=active / experts if experts else 1.0))
    if not linears:
        raise InputError(Problem(f"model {folder}", "has no linear layers by their names", "a plan is not possible"))
    query, key = heads * head_size, key_heads * head_size
    return ModelShape(
        path=folder,
        parameters=base.parameters,
        hidden=hidden,
        layers=layers,
        vocabulary=vocabulary,
        query=query,
        key=key,
        intermediate=int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
        norms=_norms(shapes, query, key),
        linears=linears,
        head_is_plain=not any(
            config.get(name) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        ),
        experts=experts,
        largest_layer=_largest_layer(shapes),
        served=family_of(whole).modules,
    )


def _size(folder: Path, config: dict[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    fix = "add it, or copy config.json from the original model"
    raise InputError(Problem(f"model {folder}: config.json", f"lacks {names[0]}", fix))


def _linears(shapes: dict[str, tuple[int, ...]], vocabulary: int, *, share: float) -> list[Linear]:
    """List every matrix of the language model's layers; embeddings and the output layer are none."""
    found = []
    for name, shape in shapes.items():
        place = in_layer(name)
        if place is None or len(shape) != 2 or not name.endswith(".weight") or vocabulary in shape:
            continue
        layer, inner = place[0], place[1].removesuffix(".weight")
        outputs, inputs = shape
        of_tokens = share if ".experts." in name else 1.0
        found.append(Linear(last(inner), layer, inputs, outputs, of_tokens, f"layers.{layer}.{inner}"))
    return found


def _largest_layer(shapes: dict[str, tuple[int, ...]]) -> int:
    sizes: dict[int, int] = {}
    for name, shape in shapes.items():
        if (place := in_layer(name)) is not None:
            sizes[place[0]] = sizes.get(place[0], 0) + math.prod(shape)
    return max(sizes.values(), default=0)


def _norms(shapes: dict[str, tuple[int, ...]], query: int, key: int) -> int:
    """Sum the sizes that the norms read; a norm of heads has one head's size and reads all of them."""
    total = 0
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if len(shape) == 1 and name.endswith(".weight") and ("norm" in module or module.startswith("ln_")):
            total += query if module == "q_norm" else key if module == "k_norm" else shape[0]
    return total
