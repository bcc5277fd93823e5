"""vLLM's own kernels on this card: those that add LoRA, and those of prompt log-probabilities that the proof reads.

vLLM's build for CPUs has neither: it runs other code. Shapes: N tokens, H inputs, R rank, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.gpu.findings import Finding, Place, below, not_here

SLOTS = 8
INPUTS, OUTPUTS = 512, (512, 128)
"""As of q and k with grouped heads: slices of unequal width."""


def vllm_kernels(place: Place) -> Iterator[Finding]:
    """Hold the kernels to the formulas they stand for."""
    why = None
    if importlib.util.find_spec("vllm") is None:
        why = "vllm is not installed here"
    elif not place.cuda:
        why = "needs CUDA: vLLM's build for CPUs has other code"
    if why is not None:
        yield not_here("vLLM's LoRA kernels", why)
        yield not_here("vLLM's prompt log-probabilities", why)
        return
    for rank in (8, 16, 64):
        for tokens in (1, 7, 256):
            off, touched = lora_off(place.device, rank=rank, tokens=tokens)
            yield below(f"LoRA of rank {rank} on {tokens} tokens: off", off, 1e-2)
            yield below(f"LoRA of rank {rank} on {tokens} tokens: change without an adapter", touched, 1e-30)
    yield below(
        "prompt log-probabilities, one prompt in two chunks: off", prompt_logprobs_off(place.device), 1e-4, "nats"
    )


def lora_off(device: str, *, rank: int, tokens: int) -> tuple[float, float]:
    """Return (error of shrink and expand as a share, largest change of a token that has no adapter)."""
    from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink

    random = torch.Generator().manual_seed(rank * 1000 + tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device, torch.bfloat16)

    x_NH, base_NO = draw(tokens, INPUTS), draw(tokens, sum(OUTPUTS))
    a = [draw(SLOTS, rank, INPUTS) / INPUTS**0.5 for _ in OUTPUTS]
    b = [draw(SLOTS, width, rank) for width in OUTPUTS]
    slots_N = torch.randint(-1, SLOTS, (tokens,), generator=random).to(device, torch.int32)
    slots_N[-1], slots_N[0] = -1, 3  # one without an adapter, where there are two
    meta = LoRAKernelMeta.make(SLOTS, tokens, device)
    meta.prepare_tensors(slots_N)
    arguments = meta.meta_args(tokens, False)
    scale, got_NO = 2.0, base_NO.clone()
    between = torch.zeros(len(OUTPUTS), tokens, rank, device=device, dtype=torch.float32)
    lora_shrink(x_NH, a, between, *arguments, scale)
    lora_expand(between, b, got_NO, *arguments, offset_start=0, add_inputs=True)

    chosen = slots_N.long().clamp(min=0)
    added = [
        torch.einsum("nh,nrh,nor->no", x_NH.float(), one_a[chosen].float(), one_b[chosen].float())
        for one_a, one_b in zip(a, b, strict=True)
    ]
    has = (slots_N >= 0)[:, None]
    want_NO = base_NO.float() + torch.where(has, scale * torch.cat(added, dim=1), 0.0)
    off = float((got_NO.float() - want_NO)[has[:, 0]].norm() / want_NO[has[:, 0]].norm())
    untouched = (got_NO - base_NO)[~has[:, 0]]
    return off, float(untouched.abs().max()) if len(untouched) else 0.0


def prompt_logprobs_off(device: str) -> float:
    """Return the largest error over two requests in a step, of which one takes two steps."""
    from vllm.v1.worker.gpu.sample.prompt_logprob import PromptLogprobsWorker

    random = torch.Generator().manual_seed(0)
    lengths, vocabulary, width = (300, 1500), 1000, 64
    head = torch.randn(width, vocabulary, generator=random).to(device)
    states = [torch.randn(length, width, generator=random).to(device) for length in lengths]
    prompts = torch.randint(0, vocabulary, (2, 1600), generator=random).to(device)
    worker = PromptLogprobsWorker(2, torch.device(device))
    asked = SimpleNamespace(prompt_logprobs=0, prompt_logprob_token_ids=None, prompt_logprob_start=None)
    for number in range(2):
        worker.add_request(f"r{number}", number, asked)
    found: dict[str, Any] = {}
    # (request, its tokens computed before, its tokens in this step)
    for step in ([(0, 0, 300), (1, 0, 700)], [(1, 700, 800)]):
        found |= worker.compute_prompt_logprobs(
            lambda hidden: hidden @ head,
            torch.cat([states[request][done : done + count] for request, done, count in step]),
            _batch(device, step, lengths),
            prompts,
            torch.tensor([next((d for r, d, _ in step if r == number), 0) for number in range(2)], device=device),
            np.array(lengths),
        )
    off = 0.0
    for number, length in enumerate(lengths):
        ids = prompts[number, 1:length]
        want = (states[number][:-1] @ head).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        got = found[f"r{number}"].logprobs[:, 0]
        off = max(off, float((got - want).abs().max()))
    return off


def _batch(device: str, step: list[tuple[int, int, int]], lengths: tuple[int, ...]) -> Any:
    """Build what the worker reads of vLLM's InputBatch."""
    requests, done, counts = (np.array(column) for column in zip(*step, strict=True))
    ends = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
    return SimpleNamespace(
        num_tokens=int(counts.sum()),
        req_ids=[f"r{request}" for request in requests],
        idx_mapping=torch.from_numpy(requests.astype(np.int32)).to(device),
        idx_mapping_np=requests,
        query_start_loc=torch.from_numpy(ends).to(device),
        query_start_loc_np=ends,
        num_computed_prefill_tokens_np=done,
        num_scheduled_tokens=counts,
        prefill_len_np=np.array(lengths)[requests],
    )
