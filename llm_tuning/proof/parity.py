"""Reads `parity.json`: the probes and log-probabilities that the trainer left beside an adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_tuning.core.files import read_json
from llm_tuning.engines.protocol import Unprovable
from llm_tuning.models.adapter import SMALL_FILE_BYTES
from llm_tuning.models.layout import PARITY
from llm_tuning.models.rope import LengthDependentRope

PARITY_VERSION = 1
UNQUANTISED = "none"


@dataclass(frozen=True)
class Probe:
    """One row as the trainer saw it; T is the number of its tokens."""

    token_ids: tuple[int, ...]
    """(T,) the rendered row."""
    base_logprobs: tuple[float, ...]
    """(T - 1,) log p(token_ids[t] | token_ids[:t]) of the bare base for t >= 1, in nats."""
    tuned_logprobs: tuple[float, ...]
    """(T - 1,) the same of the tuned model."""
    messages: tuple[Mapping[str, Any], ...] | None
    """The conversation that `token_ids` were made of; None for plain text and for rows that were cut."""
    prompt_tokens: int = 0
    """So many of `token_ids` are the prompt for the last message, as a server makes it of the others. 0 in older
    files: there the rendering of all messages gives exactly `token_ids`."""
    rendered: str | None = None
    """The text of which those ids are made, as the trainer rendered it; None in older files and where it is unknown."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools that the prompt shows, in OpenAI's form."""


@dataclass(frozen=True)
class Parity:
    """What `parity.json` says."""

    model_id: str
    dtype: str
    """`float32` or `bfloat16`: what the trainer computed in."""
    base_weight_hash: str
    quantization: str
    """What the base was trained in: `none`, or `4bit`."""
    scored_on: str
    """The same of the base that the probes were scored on; a server's is not quantised."""
    probes: tuple[Probe, ...]
    ropes: tuple[LengthDependentRope, ...] = ()
    """Those of the base that depend on a row's length; the probes are short."""


def read_parity(adapter: Path) -> Parity:
    """Read `parity.json` of an adapter's folder; raises Unprovable where it is missing or not usable."""
    path = adapter / PARITY
    try:
        value = read_json(path, most=SMALL_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise Unprovable(f"{path} cannot be read ({error}); copy the adapter again") from None
    if value is None and not path.exists():
        raise Unprovable(
            f"{adapter} has no {PARITY}: it was not trained by this project, was copied without it, "
            "or its training had no memory left to score the probes (its log says so)"
        )
    version = value.get("version") if isinstance(value, dict) else None
    if version != PARITY_VERSION:
        raise Unprovable(f"{path} has version {version!r} and this program reads {PARITY_VERSION}; use a matching one")
    try:
        return Parity(
            model_id=str(value.get("model_id") or ""),
            dtype=str(value.get("dtype") or "float32"),
            base_weight_hash=str(value.get("base_weight_hash") or ""),
            quantization=str(value.get("quantization") or UNQUANTISED),
            scored_on=str(value.get("scored_on") or UNQUANTISED),
            probes=tuple(_probe(probe) for probe in value["probes"]),
            ropes=tuple(LengthDependentRope(str(kind), int(original)) for kind, original in value.get("ropes") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unprovable(f"{path} is damaged ({error!r}); copy the adapter again") from None


def _probe(value: Mapping[str, Any]) -> Probe:
    token_ids = tuple(int(token) for token in value["token_ids"])
    base, tuned = (tuple(float(x) for x in value[name]) for name in ("base_logprobs", "tuned_logprobs"))
    if not len(base) == len(tuned) == len(token_ids) - 1:
        raise ValueError("a probe of T tokens must have T - 1 log-probabilities")
    if not all(math.isfinite(x) for x in base + tuned):
        raise ValueError("a log-probability is not finite")
    messages = value.get("messages")
    prompt_tokens = value.get("prompt_tokens", 0)
    if messages and value.get("prompt_tokens") == 0:
        messages = None  # no server makes this prompt of messages alone
    rendered = value.get("rendered")
    return Probe(
        token_ids,
        base,
        tuned,
        tuple(messages) if messages else None,
        int(prompt_tokens),
        rendered if isinstance(rendered, str) else None,
        tuple(value.get("tools") or ()),
    )
