"""Which layers of a base get an adapter: `all-linear` and names asked for, by config.json and the weights' headers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from llm_tuning.api.tuning import ALL_LINEAR, LoraSpec
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.base import BaseModel, read_config, tensor_shapes
from llm_tuning.models.families import EXPERTS_MODULE, Servable, describe, family_of, in_layer, left_out

FIELD = "lora.targetModules"


@dataclass(frozen=True)
class Targets:
    """The modules, by the last part of their names, that are trained; and why others of the base are not."""

    modules: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return describe(self.modules, self.left_out)


def find_targets(base: BaseModel, lora: LoraSpec) -> Targets:
    """Find what `lora` trains on `base`; raises InputError for all names that cannot be trained or served."""
    family = family_of(read_config(base.path))
    tensors = tensor_shapes(base)
    names = module_names(tensors)
    inside = {inner for name in names if (found := in_layer(name)) is not None for inner in [last(found[1])]}
    known = tuple(module for module in family.modules if module in inside)
    if lora.target_modules == ALL_LINEAR:
        return Targets(known, left_out(inside, family))
    asked = lora.target_modules.split(",")
    experts = _inside_experts(tensors) - {last(name) for name in names}
    problems = [problem for name in asked if (problem := _problem(name, names, known, family, experts)) is not None]
    if problems:
        raise InputError(problems)
    return Targets(tuple(module for module in known if module in {last(name) for name in asked}))


def last(name: str) -> str:
    """Return the last part of a module's name."""
    return name.rpartition(".")[2]


def module_names(tensors: Iterable[str]) -> set[str]:
    """Return the modules that hold these weights; all experts of a layer are one module, as transformers has them."""
    names = set()
    for tensor in tensors:
        before, experts, _ = tensor.partition(f".{EXPERTS_MODULE}.")
        names.add(f"{before}.{EXPERTS_MODULE}" if experts else tensor.rpartition(".")[0])
    return names


def is_asked(name: str, asked: Iterable[str]) -> bool:
    """Return whether the module `name` is one of `asked`, as PEFT matches them: whole, or its last parts."""
    return any(name == one or name.endswith(f".{one}") for one in asked)


def _inside_experts(tensors: Iterable[str]) -> set[str]:
    """Return the last name parts of what lies in the experts, one by one or fused."""
    found = (tensor.partition(f".{EXPERTS_MODULE}.")[2] for tensor in tensors)
    return {last(inner.removesuffix(".weight")) for inner in found if inner}


def _problem(name: str, names: set[str], known: tuple[str, ...], family: Servable, experts: set[str]) -> Problem | None:
    can = f"it has {', '.join(known)}; or use all-linear"
    module = last(name)
    matching = [one for one in names if is_asked(one, [name]) or is_asked(_of_text_model(one), [name])]
    if why := family.why_not(module):
        if matching:
            return Problem(FIELD, f"{name} is not trained: {why}", can)
    elif module in known and any(in_layer(one) for one in matching):
        return None
    if matching:
        rule = f"{name} is no layer of the language model whose LoRA vLLM serves"
        return Problem(FIELD, rule, can)
    if module in experts and (why := family.why_not(EXPERTS_MODULE)):
        return Problem(FIELD, f"{name} is not trained: {why}", can)
    return Problem(FIELD, f"{name} is no module of this model", can)


def _of_text_model(name: str) -> str:
    """Return a module's name as the language model by itself has it: `model.layers.0.self_attn.q_proj`."""
    found = in_layer(name)
    return f"model.layers.{found[0]}.{found[1]}" if found else name
