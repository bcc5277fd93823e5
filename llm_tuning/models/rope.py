"""Whether a base turns its positions by the length of the whole row, by config.json alone.

Most kinds of rope give a position the same angles in every row. Two do not: `longrope` (Phi-3 and Phi-4 with long
context) takes other factors in a row that is longer than the context of the pre-training, and `dynamic` a larger base
the longer the row. transformers looks at the longest row of a *pass*; `trainers.rope` makes it look at each row.
vLLM 0.32 does neither: see `_what_vllm_does`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

LONGROPE, DYNAMIC = "longrope", "dynamic"
_OLD_NAMES = {"su": LONGROPE}
_OLD_NAMES_OF_PHI3 = {"su": LONGROPE, "yarn": LONGROPE}
_PHI3 = {"phi3": 4096, "phi4_multimodal": 4096}
"""Model types that read older names, with the original length that they have where config.json has none."""
WHOLE_MODEL = ""
"""In place of a layer type, where all layers share one rope."""


@dataclass(frozen=True)
class LengthDependentRope:
    """A rope whose angles depend on the row's length."""

    kind: str
    """`longrope` or `dynamic`."""
    original: int
    """Tokens of the longest row whose angles are those of the short ones."""

    def group(self, length: int) -> int:
        """Return a number that rows share if and only if a position has the same angles in them."""
        if length <= self.original:
            return 0
        return length if self.kind == DYNAMIC else 1


def length_dependent_ropes(config: Mapping[str, Any]) -> dict[str, LengthDependentRope]:
    """Find the ropes that depend on the row's length by layer type (`WHOLE_MODEL` where all layers share one).

    `config` is a base's config.json in its old or its new form, or the `to_dict()` of a loaded configuration.
    """
    config = text_config(config)
    parameters = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(parameters, Mapping):
        return {}
    nested = {name: part for name, part in parameters.items() if isinstance(part, Mapping)}
    found = {name: _rope(part, config) for name, part in (nested or {WHOLE_MODEL: parameters}).items()}
    return {name: rope for name, rope in found.items() if rope is not None}


def shortest_original(ropes: Iterable[LengthDependentRope]) -> int | None:
    """Return the length up to which no row differs from short ones; None where length never matters."""
    return min((rope.original for rope in ropes), default=None)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a config that is the language model's."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def context_as_trained(config: Mapping[str, Any]) -> int | None:
    """Return the context that vLLM must be given so as not to serve what no training computes; None: its own is right.

    Its own is the original length for longrope; for dynamic rope it is `factor` times what vLLM has angles for.
    """
    return shortest_original(rope for rope in length_dependent_ropes(config).values() if rope.kind == DYNAMIC)


def served_otherwise(ropes: Iterable[LengthDependentRope], max_model_len: int | None) -> str | None:
    """Say how vLLM, started with this context, computes rows otherwise than training did; None where it does not."""
    beyond = [rope for rope in ropes if max_model_len is not None and max_model_len > rope.original]
    if not beyond:
        return None
    rope = min(beyond, key=lambda rope: rope.original)
    return f"the server's context of {max_model_len:,} tokens is not served as trained: {_what_vllm_does(rope)}"


def trained_beyond(ropes: Iterable[LengthDependentRope], longest: int) -> str | None:
    """Say why no vLLM serves rows of `longest` tokens as they are trained; None where they are short enough."""
    beyond = [rope for rope in ropes if longest > rope.original]
    if not beyond:
        return None
    rope = min(beyond, key=lambda rope: rope.original)
    return (
        f"rows have up to {longest:,} tokens: {_what_vllm_does(rope)}, and {{field:training.max_length}} "
        f"{rope.original} or less"
    )


def _what_vllm_does(rope: LengthDependentRope) -> str:
    if rope.kind == DYNAMIC:
        return (
            f"beyond {rope.original:,} tokens this base's rope ({DYNAMIC}) takes a larger theta, and vLLM has no "
            f"angles there; use --max-model-len {rope.original} or less"
        )
    return (
        f"beyond {rope.original:,} tokens this base's rope ({LONGROPE}) takes its long factors, and vLLM with a longer "
        f"context takes them for every prompt, short ones included; use --max-model-len {rope.original} or less"
    )


def _rope(parameters: Mapping[str, Any], config: Mapping[str, Any]) -> LengthDependentRope | None:
    model_type = config.get("model_type")
    old_names = _OLD_NAMES_OF_PHI3 if model_type in _PHI3 else _OLD_NAMES
    name = parameters.get("rope_type") or parameters.get("type")
    kind = old_names.get(str(name), name)
    if kind not in (LONGROPE, DYNAMIC):
        return None
    longest = config.get("max_position_embeddings")
    original: Any = longest
    if kind == LONGROPE:
        original = (
            config.get("original_max_position_embeddings")
            or _PHI3.get(str(model_type))
            or parameters.get("original_max_position_embeddings")
            or longest
        )
    return LengthDependentRope(kind, original) if isinstance(original, int) else None
