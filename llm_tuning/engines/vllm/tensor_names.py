"""Whether vLLM finds an adapter's tensors by their names: a name that it does not look up it drops without a word.

vLLM goes by the class that config.json names. Of a base that also sees or hears the layers lie below `language_model`;
an adapter that was trained on the language model alone has them without it, and would do nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llm_tuning.engines.plan import Lookup
from llm_tuning.engines.vllm.limits import architecture_of, is_multimodal
from llm_tuning.models.base import BaseModel, read_config, tensor_shapes
from llm_tuning.models.families import EXPERTS_MODULE, FAMILIES, in_layer

NESTED = "language_model"
_TAKES_BOTH = ("Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM")
"""Text classes that take the names of the whole model as well."""
_TOWER = re.compile(r"vision|visual|image|audio|speech|video|multi_modal|mm_projector|mm_input|connector")
_EXPERT = re.compile(rf"\.{EXPERTS_MODULE}(\.|$)")
_FUSED = re.compile(rf"\.{EXPERTS_MODULE}(\.base_layer|\.gate_up_proj|\.down_proj)?$")


@dataclass(frozen=True)
class Names:
    """What the module names of an adapter tell; an example of each kind, empty where there is none."""

    modules: tuple[str, ...] = ()
    """Their last parts; all experts of a layer are `experts`."""
    plain: str = ""
    """A layer whose name has no `language_model`."""
    nested: str = ""
    """A layer whose name has it."""
    tower: str = ""
    """One that sees or hears."""
    fused: str = ""
    """Experts of a layer in one tensor, as PEFT's target_parameters writes them."""


def read_names(paths: Iterable[str]) -> Names:
    """Read the names of adapted modules, as `model.layers.0.self_attn.q_proj`."""
    modules, examples = set(), dict[str, str]()
    for path in sorted(paths):
        modules.add(EXPERTS_MODULE if _EXPERT.search(path) else path.rpartition(".")[2])
        if in_layer(path) is None:
            if _TOWER.search(path):
                examples.setdefault("tower", path)
            continue
        examples.setdefault("nested" if NESTED in path.split(".") else "plain", path)
        if _FUSED.search(path):
            examples.setdefault("fused", path)
    return Names(tuple(sorted(modules)), **examples)


def read_lookup(base: BaseModel, *, towers: bool) -> Lookup:
    """Read how vLLM looks up an adapter's tensors on `base`; `towers`: it is started with what sees and hears."""
    config = read_config(base.path)
    architecture = architecture_of(config)
    nested = architecture not in _TAKES_BOTH and any(NESTED in name.split(".") for name in tensor_shapes(base))
    return Lookup(architecture=architecture, nested=nested, towers=towers and is_multimodal(config))


def name_faults(names: Names, lookup: Lookup) -> list[tuple[str, str]]:
    """List what vLLM would drop or refuse of an adapter, each with what would be right."""
    faults = []
    family = FAMILIES.get(lookup.architecture)
    if lookup.nested and names.plain:
        right = (family and family.names) or f"model.{NESTED}."
        rule = (
            f"has the names of the language model alone ({names.plain}), and in {lookup.architecture} vLLM looks for "
            f"them below {NESTED}: it would load the adapter and change nothing"
        )
        renamed = f"{_before(names.plain)}layers... to {right}layers..."
        fix = f"train it again with this version, or rename its tensors ({renamed})"
        faults.append((rule, fix))
    if lookup.architecture and not lookup.nested and names.nested and lookup.architecture not in _TAKES_BOTH:
        rule = (
            f"has the names of a model that also sees or hears ({names.nested}), and {lookup.architecture} is the "
            f"language model alone: vLLM would load the adapter and change nothing"
        )
        faults.append((rule, "serve the base that it was trained on"))
    if names.tower and not lookup.towers:
        rule = f"changes layers that see or hear ({names.tower}), and this server is started for text alone"
        faults.append((rule, "start it with them (spec.vllm.languageModelOnly: false), or train without these layers"))
    if names.fused and family is not None and not family.fused_experts:
        rule = (
            f"changes experts in one tensor for all of them ({names.fused}), a form that vLLM does not take for "
            f"{lookup.architecture}"
        )
        faults.append((rule, "train again, on the attention and the layers that all tokens share (the default)"))
    return faults


def _before(path: str) -> str:
    """Return what stands before `layers.N` in a module's name."""
    return path.partition("layers.")[0]
