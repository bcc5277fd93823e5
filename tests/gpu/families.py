"""A pass forward and backward in bf16 through every family, against each model's own forward in fp32 on the CPU.

CUDA's autocast computes layer norms in fp32 and the CPU's does not: what only shows there is what dtype meets what.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor

from llm_tuning.trainers.flat_rows import RowLayout
from llm_tuning.trainers.micro_batches import flatten, pad
from llm_tuning.trainers.model import checkpoint_gradients, silence_dropout
from llm_tuning.trainers.policy import Policy
from tests.gpu.findings import Finding, Place, not_here
from tests.gpu.models import away, gradients, moved, plain_outputs, random_rows
from tests.support.families import FAMILIES, VOCABULARY, make_adapted_model

LENGTHS = (24, 11, 17, 5)
"""The first is longer than the windows of 16 that some of the families have."""
LOSS_OFF = 2e-2
GRADIENT_OFF = 0.25
"""bf16 is off by 1 to 8 % in these wide weights, Granite's by 18; a row that sees its neighbour by half."""
LEAST_AT_ONCE = 10
"""Families whose rows one kernel takes: 17 have them end to end, some with heads or caps that it does not take."""


def families(place: Place) -> Iterator[Finding]:
    """Train a step of each family; flat and padded, checkpointed and not, must give the numbers of the plain form."""
    at_once = []
    for name in FAMILIES:
        expected = f"no error, flat as on the CPU, loss off < {LOSS_OFF:g}, gradient off < {GRADIENT_OFF:g}"
        try:
            seen, passed, layout = _family(place, name)
            at_once += [name] if layout.flat and layout.attention.startswith("varlen_attn") else []
        except Exception as error:
            seen, passed = f"{type(error).__name__}: {error}"[:200], False
        yield Finding.of(name, expected=expected, seen=seen, passed=passed)
    if place.cuda:
        passed = len(at_once) >= LEAST_AT_ONCE
        yield Finding.of("rows at once", expected=f">= {LEAST_AT_ONCE}", seen=", ".join(at_once), passed=passed)
    else:
        yield not_here("families whose rows varlen_attn takes at once", "needs CUDA")


def _family(place: Place, name: str) -> tuple[str, bool, RowLayout]:
    rows = random_rows(LENGTHS, VOCABULARY)
    lora = make_adapted_model(name, torch.bfloat16)
    lora.config.use_cache = False
    silence_dropout(lora)
    on_cpu = moved(lora, "cpu", torch.bfloat16)
    lora.float().eval()  # the same weights: what differs is the arithmetic
    loss = -torch.cat([plain_outputs(lora, row)[0] for row in rows]).sum()
    loss.backward()
    want = torch.cat([p.grad.double().flatten() for p in lora.parameters() if p.requires_grad])
    losses_off, gradients_off, flats = [], [], set()
    for checkpointed in (False, True):
        policy = moved(lora, place.device, torch.bfloat16, with_values=on_cpu.head is not None)
        flats.add(policy.flat_rows)
        if checkpointed:
            checkpoint_gradients(policy.model)
        policy.train(checkpointed)
        for flat in {policy.flat_rows, False}:
            got, found = _step(policy, (flatten if flat else pad)(rows))
            losses_off.append(abs(got / loss.item() - 1))
            gradients_off.append(away(found, want))
    flat = flats == {on_cpu.flat_rows}
    seen = f"flat {sorted(flats)}, loss off {max(losses_off):.2g}, gradient off {max(gradients_off):.2g}"
    passed = flat and max(losses_off) < LOSS_OFF and max(gradients_off) < GRADIENT_OFF
    return seen, passed, policy.row_layout


def _step(policy: Policy, batch: Any) -> tuple[float, Tensor]:
    """Run all that a run asks of a policy; returns the loss summed over the batch, and the adapter's gradient."""
    with disable_input_dtype_casting(policy.model):
        policy.score(batch)
        if policy.value_head is not None:
            logprobs, values = policy.logprobs_and_values(batch)
            policy.kl(batch, policy.hidden(batch))
            (-logprobs.sum() + 0 * values.sum()).backward()
        else:
            logprobs = policy.logprobs(batch)
            (-logprobs.sum()).backward()
    count = sum(parameter.numel() for parameter in policy.adapter())
    return float(-logprobs.detach().sum()), gradients(policy)[:count]
