"""Padding-free: rows end to end in one micro-batch, each attending to itself only.

A model that does not know where a row ends attends across rows, and nothing shows it: the loss differs in the third
digit, the gradients by half. So where rows end goes to the attention function itself (no block mask of the whole
micro-batch, whose cost grows with its square), and a model is trusted with it only after a trial in which a change in
one row left every bit of the other row as it was. A kernel is trusted on its device after a trial in which its outputs
and gradients were those of sdpa.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from llm_tuning.trainers import attention
from llm_tuning.trainers.attention import ROW_BY_ROW, ROWS_AT_ONCE, FlatRows, rows_at_once_are_right
from llm_tuning.trainers.model import decoder_of
from llm_tuning.trainers.transfer import to_device

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers that see other tokens through attention alone (a convolution or a state would run on into the
next row), and whose masks are known here."""


@dataclass(frozen=True)
class RowLayout:
    """How a model takes the rows of a micro-batch: end to end, or padded."""

    flat: bool
    attention: str
    """What computes it, and why nothing better does: a faster kernel, or one that keeps rows apart."""

    def __str__(self) -> str:
        return f"padding-free: {'yes' if self.flat else 'no, rows are padded'}; attention: {self.attention}"


def agreed(layouts: Sequence[RowLayout]) -> RowLayout:
    """Return the layout for all ranks, given each one's: ranks deal out the same micro-batches, so one pads for all."""
    return next((layout for layout in layouts if not layout.flat), layouts[0])


def flat_arguments(device: torch.device, row_lengths: Sequence[int]) -> dict[str, Any]:
    """Build a decoder's arguments besides `input_ids` (1, tokens): a 4D mask is taken for finished and not made."""
    (positions,) = to_device(device, torch.cat([torch.arange(length) for length in row_lengths])[None])
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
    return {
        "position_ids": positions,
        "attention_mask": mask,
        "flat_rows": FlatRows.of(row_lengths, device),
        "use_cache": False,
    }


@torch.no_grad()
def take_flat_rows(causal_lm: Any) -> RowLayout:
    """Switch `causal_lm` to attention within rows if a trial shows that it works; otherwise its rows are padded.

    Call it under the autocast of training.
    """
    before = causal_lm.config._attn_implementation
    if before != "sdpa":
        return RowLayout(False, f"{before}, which has no way to keep rows apart")
    was_training = causal_lm.training
    causal_lm.eval()
    slower, padded = None, _unknown_layers(causal_lm.config.get_text_config())
    if padded is None:
        slower = _why_no_varlen(causal_lm) or _why_not(ROWS_AT_ONCE, causal_lm)
        padded = _why_not(ROW_BY_ROW, causal_lm) if slower else None
    if padded is not None:
        causal_lm.set_attn_implementation(before)
        if causal_lm.device.type == "cuda" and not _flash_is_there(causal_lm):
            _take_sdpa_without_groups(causal_lm)
    causal_lm.train(was_training)
    if padded is not None:
        return RowLayout(False, f"sdpa, since {padded}")
    return RowLayout(True, f"sdpa row by row, since {slower}" if slower else "varlen_attn")


def _unknown_layers(config: Any) -> str | None:
    """Return why no trial could show that rows are kept apart, None where one can."""
    if unknown := set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS:
        return f"there are layers of kind {', '.join(sorted(unknown))}"
    return "it is in chunks" if getattr(config, "attention_chunk_size", None) is not None else None


def _flash_is_there(causal_lm: Any) -> bool:
    return attention.has_flash(causal_lm.device) and _dtype_in_attention(causal_lm) in attention.FLASH_DTYPES


def _take_sdpa_without_groups(causal_lm: Any) -> None:
    """Give a padded model the sdpa of `attention`, which keeps no T x T scores of grouped keys, if all else stays.

    Some models have other code for names of attention that they do not know.
    """
    before, ids = causal_lm.config._attn_implementation, torch.arange(1, 13, device=causal_lm.device)[None]
    want = decoder_of(causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
    try:
        causal_lm.set_attn_implementation(ROW_BY_ROW)
        got = decoder_of(causal_lm)(input_ids=ids, use_cache=False).last_hidden_state
        same = torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
    except Exception:  # as in a trial of rows
        same = False
    if not same:
        causal_lm.set_attn_implementation(before)


def _why_no_varlen(causal_lm: Any) -> str | None:
    """Return why varlen_attn need not be tried here, None where it is worth a trial."""
    if not attention.has_flash(causal_lm.device):
        return "varlen_attn is for GPUs" if causal_lm.device.type == "cpu" else "the GPU is older than Ampere"
    if _dtype_in_attention(causal_lm) not in attention.FLASH_DTYPES:
        return "the precision is fp32"
    if lacking := attention.varlen_lacks():
        return f"torch {torch.__version__} lacks {', '.join(lacking)}"
    return None


def _dtype_in_attention(causal_lm: Any) -> torch.dtype:
    return attention.dtype_in_attention(causal_lm.get_input_embeddings().weight)


def _why_not(name: str, causal_lm: Any) -> str | None:
    """Give the model the attention of that name and try it; returns why its rows cannot lie end to end with it."""
    decoder = decoder_of(causal_lm)
    try:
        causal_lm.set_attn_implementation(name)
        arguments = flat_arguments(decoder.device, [5, 7])
        wrong = _what_is_wrong(decoder, arguments)
        if wrong is None and name == ROWS_AT_ONCE:
            sizes, dtype = arguments["flat_rows"].at_once, _dtype_in_attention(causal_lm)
            if not sizes:
                return "varlen_attn takes none of the layers"
            if not all(rows_at_once_are_right(decoder.device, dtype, size) for size in sizes):
                return "varlen_attn is not right on this GPU"
    except Exception as error:  # decoders that do not take these arguments raise many types
        return f"a trial ended with {type(error).__name__}"
    return wrong


def _what_is_wrong(decoder: Any, arguments: dict[str, Any]) -> str | None:
    """Run rows of 5 and 7 tokens end to end: the second must not be touched by the first, and be as it is alone."""
    first, other, second = (
        torch.arange(start, start + n, device=decoder.device) for start, n in ((1, 5), (7, 5), (13, 7))
    )

    def states_of_second(before: Tensor) -> Tensor:
        ids = torch.cat([before, second])[None]
        states: Tensor = decoder(input_ids=ids, **arguments).last_hidden_state[0, 5:]
        return states

    with _windows_of_masks(decoder) as windows:
        # As many tokens as the others: products of other shapes round otherwise.
        alone = decoder(input_ids=torch.cat([second, first])[None], use_cache=False).last_hidden_state[0, :7].float()
    flat = states_of_second(first)
    if not torch.allclose(flat.float(), alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max())):
        return "in a trial a row behind another one was not what it is alone"
    if not torch.equal(flat, states_of_second(other)):
        return "in a trial a row changed with the one before it"
    if untold := windows - arguments["flat_rows"].windows:
        return f"its layers do not tell it of their window of {untold.pop()} tokens"
    return None


@contextmanager
def _windows_of_masks(decoder: Any) -> Iterator[set[int]]:
    """Collect the sliding windows for which transformers makes masks while the block runs.

    The rows of a trial are shorter than any window: a model that has one in its masks alone would pass without it.
    """
    windows: set[int] = set()

    def mask(*args: Any, local_size: int | None = None, **kwargs: Any) -> Any:
        windows.update({local_size} if local_size else ())
        return sdpa_mask(*args, local_size=local_size, **kwargs)

    name = decoder.config._attn_implementation
    AttentionMaskInterface.register(name, mask)
    try:
        yield windows
    finally:
        AttentionMaskInterface.register(name, sdpa_mask)
