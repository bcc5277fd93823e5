"""Padding-free: rows end to end in one micro-batch, each attending to itself only.

A model that does not know where a row ends attends across rows, and nothing shows it: the loss differs in the third
digit, the gradients by half. So the row lengths go to the attention function itself, which attends row by row (no block
mask of the whole micro-batch, whose cost grows with its square), and a model is trusted with it only after a
trial in which a change in one row left every bit of the other row as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

WITHIN_ROWS = "within_rows"
"""Name of the attention in transformers' registry; without `row_lengths` it is sdpa."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that see other tokens through attention alone (a convolution or a state would run on into the
next row), and whose masks are known here."""


def within_rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention inside each of the rows that lie end to end in (1, heads, tokens, head size)."""
    if row_lengths is None:
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return out, None
    lengths = list(row_lengths)
    rows = zip(query.split(lengths, dim=2), key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    outs = [sdpa_attention_forward(module, q, k, v, _window(q, sliding_window), **kwargs)[0] for q, k, v in rows]
    return torch.cat(outs, dim=1), None


def _window(query: Tensor, sliding_window: int | None) -> Tensor | None:
    """Build the mask (1, 1, T, T) of a row longer than the window; None, plain causal attention, for others."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    at = torch.arange(length, device=query.device)
    behind = at[:, None] - at[None, :]
    return ((behind >= 0) & (behind < sliding_window))[None, None]


AttentionInterface.register(WITHIN_ROWS, within_rows_attention)
AttentionMaskInterface.register(WITHIN_ROWS, sdpa_mask)


def flat_arguments(device: torch.device, row_lengths: Sequence[int]) -> dict[str, Any]:
    """Build a decoder's arguments besides `input_ids` (1, tokens): a 4D mask is taken for finished and not made."""
    positions = torch.cat([torch.arange(length) for length in row_lengths])[None].to(device, non_blocking=True)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {"position_ids": positions, "attention_mask": mask, "row_lengths": row_lengths, "use_cache": False}


@torch.no_grad()
def take_flat_rows(causal_lm: Any) -> bool:
    """Switch `causal_lm` to attention within rows if a trial shows that it works; otherwise leave it as it was."""
    config = causal_lm.config.get_text_config()
    before = causal_lm.config._attn_implementation
    if before != "sdpa" or not set(getattr(config, "layer_types", None) or ()) <= KNOWN_LAYERS:
        return False
    if getattr(config, "attention_chunk_size", None) is not None:
        return False
    was_training = causal_lm.training
    causal_lm.eval()
    causal_lm.set_attn_implementation(WITHIN_ROWS)
    try:
        works = _rows_are_apart(causal_lm.base_model)
    except Exception:  # decoders that do not take these arguments raise many types
        works = False
    causal_lm.train(was_training)
    if not works:
        causal_lm.set_attn_implementation(before)
    return works


def _rows_are_apart(decoder: Any) -> bool:
    first, other, second = (
        torch.arange(start, start + n, device=decoder.device) for start, n in ((1, 5), (7, 5), (13, 7))
    )
    arguments = flat_arguments(decoder.device, [5, 7])

    def states_of_second(before: Tensor) -> Tensor:
        ids = torch.cat([before, second])[None]
        states: Tensor = decoder(input_ids=ids, **arguments).last_hidden_state[0, 5:]
        return states

    alone = decoder(input_ids=second[None], use_cache=False).last_hidden_state[0].float()
    flat = states_of_second(first)
    close = torch.allclose(flat.float(), alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))
    return close and torch.equal(flat, states_of_second(other))
