"""Attention over rows that lie end to end: all rows at once by torch's varlen_attn, or row by row by sdpa.

varlen_attn has no kernel for a CPU. Numbers are compared here with its documentation in its place; what a GPU is asked
for, fake CUDA tensors tell. What only a card can tell, its own arithmetic, each run tries before it trusts it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm_tuning.data.token_rows import TokenRow
from llm_tuning.trainers import attention
from llm_tuning.trainers.attention import FlatRows, row_by_row, rows_at_once, rows_at_once_are_right
from llm_tuning.trainers.flat_rows import RowLayout, agreed
from llm_tuning.trainers.micro_batches import flatten, pad
from llm_tuning.trainers.policy import Policy
from tests.support.fake_cuda import DEVICE, Work, fake_cuda, onto_cuda
from tests.support.families import FAMILIES, VOCABULARY, Family, make_adapted_model
from tests.support.varlen import plain_varlen_attn

CPU = torch.device("cpu")
WINDOW = 16
"""Of the families with one."""
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
MORE = {
    "sliding-cohere2": Family("cohere2", SLIDING),
    "sliding-olmo3": Family("olmo3", SLIDING),
    "sliding-exaone4": Family("exaone4", SLIDING),
    "sliding-gemma4": Family("gemma4_text", SLIDING | {"global_head_dim": 32, "hidden_size_per_layer_input": 0}),
    "nemotron": Family("nemotron", flat=False),
    "states-qwen3-next": Family("qwen3_next", {"num_experts": 2, "num_experts_per_tok": 1}, flat=False),
}
ALL = FAMILIES | MORE
FLAT = [name for name, family in ALL.items() if family.flat]


@pytest.fixture(autouse=True)
def more_families(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, family in MORE.items():
        monkeypatch.setitem(FAMILIES, name, family)


def make_rows(*lengths: int) -> list[TokenRow]:
    random = np.random.default_rng(0)
    learned = [np.arange(length) > length // 3 for length in lengths]
    ids = [random.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths]
    return [TokenRow(*row, 0.0, number) for number, row in enumerate(zip(ids, learned, strict=True))]


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Give the CPU varlen_attn, in fp32 too; returns the windows that it is called with."""
    windows: list[tuple[int, int]] = []

    @functools.wraps(plain_varlen_attn)
    def kept(*args: Any, **kwargs: Any) -> Tensor:
        windows.append(kwargs["window_size"])
        return plain_varlen_attn(*args, **kwargs)

    monkeypatch.setattr(attention, "varlen_attn", kept)
    monkeypatch.setattr(attention, "has_flash", lambda _device: True)
    monkeypatch.setattr(attention, "FLASH_DTYPES", (torch.float32, torch.bfloat16))
    return windows


def logprobs_and_gradients(policy: Policy, rows: list[TokenRow], *, flat: bool) -> tuple[Tensor, Tensor]:
    policy.zero_grad()
    batches = [flatten(rows)] if flat else [pad([row]) for row in rows]
    logprobs = torch.cat([policy.logprobs(batch) for batch in batches])
    (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.adapter() if p.grad is not None])


def relative(got: Tensor, want: Tensor) -> float:
    return float((got.float() - want).norm() / want.norm())


@pytest.mark.parametrize("name", FLAT)
def test_rows_at_once_are_what_each_row_is_alone(name: str, varlen: list[tuple[int, int]]) -> None:
    policy = Policy(make_adapted_model(name), device="cpu", dtype=torch.float32)
    assert str(policy.row_layout) == "padding-free: yes; attention: varlen_attn"
    rows = make_rows(3, 40, 17, 60, 29)
    want = logprobs_and_gradients(policy, rows, flat=False)
    varlen.clear()
    got = logprobs_and_gradients(policy, rows, flat=True)
    assert len(varlen) == 2, "once a layer"
    assert ((WINDOW - 1, 0) in varlen) == name.startswith("sliding")
    for one, other in zip(got, want, strict=True):
        assert relative(one, other) < 1e-5


def test_rows_no_longer_than_the_window_are_computed_without_it(varlen: list[tuple[int, int]]) -> None:
    policy = Policy(make_adapted_model("sliding-mistral"), device="cpu", dtype=torch.float32)
    varlen.clear()
    policy.score(flatten(make_rows(WINDOW, 5)))
    policy.score(flatten(make_rows(WINDOW + 1, 5)))
    assert varlen == [(-1, 0)] * 2 + [(WINDOW - 1, 0)] * 2


def test_a_recomputed_forward_has_the_same_rows(varlen: list[tuple[int, int]]) -> None:
    model, rows = make_adapted_model("sliding-gemma3"), make_rows(20, 30)
    policy = Policy(model, device="cpu", dtype=torch.float32)
    _, want = logprobs_and_gradients(policy, rows, flat=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    varlen.clear()
    _, got = logprobs_and_gradients(policy.train(), rows, flat=True)
    assert len(varlen) == 4
    assert relative(got, want) < 1e-5


# A kernel is tried before it is trusted.


def broken(**wrong: Any) -> Callable[..., Tensor]:
    @functools.wraps(plain_varlen_attn)
    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        return plain_varlen_attn(*args, **kwargs | {key: make(kwargs) for key, make in wrong.items()})

    return kernel


@functools.wraps(plain_varlen_attn)
def without_a_slope(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return plain_varlen_attn(query, key.detach(), value, *args, **kwargs)


@functools.wraps(plain_varlen_attn)
def over_the_ends(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    one = ends[[0, -1]]
    return plain_varlen_attn(query, key, value, one, one, int(one[1]), int(one[1]), **kwargs)


@functools.wraps(plain_varlen_attn)
def raises(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("FlashAttention backward for head dim > 192 requires A100/A800 or H100/H800")


def wider(by: int) -> Callable[..., Tensor]:
    def window(asked: dict[str, Any]) -> tuple[int, int]:
        left, right = asked["window_size"]
        return (left + by if left >= 0 else left, right)

    return broken(window_size=window)


FAULTS = {
    "a window of one token more": wider(1),
    "a window of one token less": wider(-1),
    "no window": broken(window_size=lambda _: (-1, 0)),
    "what comes later is seen": broken(window_size=lambda _: (-1, -1)),
    "another scale": broken(scale=lambda _: 0.3),
    "keys have no gradient": without_a_slope,
    "rows see each other": over_the_ends,
    "raises": raises,
}


@pytest.mark.parametrize("kernel", FAULTS.values(), ids=FAULTS)
def test_a_kernel_that_is_not_right_is_not_used(
    kernel: Callable[..., Tensor], varlen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (16, 64, 128, 256):
        assert rows_at_once_are_right(CPU, torch.bfloat16, size)
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    layout = Policy(make_adapted_model("llama", torch.bfloat16), device="cpu", dtype=torch.bfloat16).row_layout
    assert layout.flat
    assert layout.attention.startswith("sdpa row by row, since ")


def test_an_older_torch_whose_kernel_lacks_arguments_goes_row_by_row(
    varlen: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_2_10(query: Tensor, key: Tensor, value: Tensor, *ends: Any, is_causal: bool, scale: float) -> Tensor:
        raise AssertionError("is not asked")

    for kernel, lacks in ((of_2_10, "window_size, enable_gqa"), (None, "varlen_attn")):
        monkeypatch.setattr(attention, "varlen_attn", kernel)
        layout = Policy(make_adapted_model("llama"), device="cpu", dtype=torch.float32).row_layout
        assert layout.attention == f"sdpa row by row, since torch {torch.__version__} lacks {lacks}"


@pytest.mark.parametrize(
    ("size", "of_values", "asked"),
    [(20, 20, {}), (264, 264, {}), (16, 8, {}), (16, 16, {"dropout": 0.1}), (16, 16, {"is_causal": False})],
    ids=["not by 8", "large", "values of another size", "dropout", "not causal"],
)
def test_a_layer_that_the_kernel_does_not_take_goes_row_by_row(
    size: int, of_values: int, asked: dict[str, Any], varlen: list[tuple[int, int]]
) -> None:
    rows = FlatRows.of([4, 9], CPU)
    query, key, value = (torch.randn(1, 2, 13, n) for n in (size, size, of_values))
    results = []
    for attend in (rows_at_once, row_by_row):
        torch.manual_seed(0)
        results.append(attend(nn.Module(), query, key, value, None, flat_rows=rows, **asked)[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert varlen == []


# Which models may have their rows end to end.


def test_a_window_that_a_model_has_in_its_masks_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen2-MoE's layers do not hand their window to the attention, so longer rows would go without it."""
    experts = {"num_experts": 2, "num_experts_per_tok": 2, "decoder_sparse_step": 10}
    window = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 2}
    layouts = []
    for sizes in (experts, experts | window):
        monkeypatch.setitem(FAMILIES, "qwen2-moe", Family("qwen2_moe", sizes))
        layouts.append(Policy(make_adapted_model("qwen2-moe"), device="cpu", dtype=torch.float32).row_layout)
    assert [layout.flat for layout in layouts] == [True, False]
    assert layouts[1].attention == "sdpa, since its layers do not tell it of their window of 16 tokens"


NOT_ALONE = "sdpa, since in a trial a row behind another one was not what it is alone"
PADDED = {
    "capped-gemma2": "eager, which has no way to keep rows apart",
    "sinks-gpt-oss": "eager, which has no way to keep rows apart",
    "bloom": "eager, which has no way to keep rows apart",
    "convolution-lfm2": "sdpa, since there are layers of kind conv",
    "states-qwen3-next": "sdpa, since there are layers of kind linear_attention",
    "falcon": NOT_ALONE,
    "stablelm": NOT_ALONE,
    "nemotron": NOT_ALONE,
}


@pytest.mark.parametrize("name", PADDED)
def test_a_padded_model_says_why(name: str, varlen: list[tuple[int, int]]) -> None:
    model = make_adapted_model(name)
    before = model.get_base_model().config._attn_implementation
    policy = Policy(model, device="cpu", dtype=torch.float32)
    assert not policy.flat_rows
    assert str(policy.row_layout) == f"padding-free: no, rows are padded; attention: {PADDED[name]}"
    assert model.get_base_model().config._attn_implementation == before


def test_the_page_about_it_has_these_models() -> None:
    page = (Path(__file__).parents[3] / "docs/sft.md").read_text()
    rows = [line for line in page.partition("| Model types")[2].splitlines() if line.startswith("| `")]
    listed = {kind: row.rpartition("| ")[2].strip(" |") for row in rows for kind in re.findall(r"`(\w+)`", row)}
    expected = {True: "end to end", False: "padded", None: "by trial"}
    assert {family.kind: expected[family.flat] for family in ALL.values()}.items() <= listed.items()


def test_one_rank_that_pads_pads_for_all() -> None:
    """Another card may fail a trial, and ranks deal out micro-batches that each of them cuts by itself."""
    flat, other, padded = RowLayout(True, "varlen_attn"), RowLayout(True, "sdpa"), RowLayout(False, "sdpa")
    assert agreed([flat, padded, other]) == padded
    assert agreed([flat, other]) == flat


# What a GPU is asked for.


def on_cuda(name: str, dtype: torch.dtype) -> Policy:
    return Policy(onto_cuda(make_adapted_model(name, dtype)), device=DEVICE, dtype=dtype)


def attention_calls(work: Work) -> dict[str, int]:
    """Count kernels of attention, and products that would make T x T scores."""
    return {name: n for name, n in work.launches.items() if any(part in name for part in ("attn", "attention", "bmm"))}


NORMS_OF_KEYS = "normed-phi"
"""CUDA's autocast computes its LayerNorms of queries and keys in fp32, and leaves them so; values are in bf16."""


@pytest.fixture
def normed_phi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, NORMS_OF_KEYS, Family("phi", {"qk_layernorm": True}))


@pytest.mark.usefixtures("normed_phi")
@pytest.mark.parametrize("name", ["llama", "sliding-gemma3", NORMS_OF_KEYS])
def test_on_a_gpu_a_pass_of_many_rows_is_one_call_a_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = attention.varlen_attn

    @functools.wraps(kernel)
    def checked(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        return kernel(query, key, value, *args, **kwargs)

    monkeypatch.setattr(attention, "varlen_attn", checked)
    with fake_cuda() as work:
        policy = on_cuda(name, torch.bfloat16)
        assert policy.row_layout.attention == "varlen_attn"
        work.clear()
        policy.logprobs(flatten(make_rows(3, 40, 17, 60, 29))).sum().backward()
        calls = attention_calls(work)
    assert calls == {"_varlen_attn": 2, "_varlen_attn_backward": 2}


def test_on_a_gpu_before_ampere_rows_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda():
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _device: (7, 5))
        assert (
            on_cuda("llama", torch.bfloat16).row_layout.attention
            == "sdpa row by row, since the GPU is older than Ampere"
        )


def test_on_a_gpu_grouped_heads_of_a_padded_model_keep_no_scores_in_fp32() -> None:
    """LFM2's convolutions run on into the next row."""
    with fake_cuda() as work:
        policy = on_cuda("convolution-lfm2", torch.float32)
        assert not policy.flat_rows
        work.clear()
        policy.logprobs(pad(make_rows(40, 60))).sum().backward()
        calls = attention_calls(work)
    kernel = "_scaled_dot_product_efficient_attention"
    assert calls == {kernel: 1, f"{kernel}_backward": 1}


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "padded"])
@pytest.mark.parametrize("name", ["llama", "sliding-mistral"])
def test_on_a_gpu_grouped_heads_in_fp32_keep_no_scores(name: str, flat: bool) -> None:
    with fake_cuda() as work:
        policy = on_cuda(name, torch.float32)
        assert policy.row_layout.attention == "sdpa row by row, since the precision is fp32"
        work.clear()
        rows = make_rows(40, 60)
        policy.logprobs(flatten(rows) if flat else pad(rows)).sum().backward()
        calls = attention_calls(work)
    each = 4 if flat else 2
    kernel = "_scaled_dot_product_efficient_attention"
    assert calls == {kernel: each, f"{kernel}_backward": each}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_what_a_pass_needs_once_is_not_done_in_every_layer(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither copies that the host waits for, nor masks of windows, which would be kept for the backward pass."""
    monkeypatch.setitem(FAMILIES, "deep", Family("mistral", {"sliding_window": WINDOW, "num_hidden_layers": 5}))
    seen = []
    for name in ("sliding-mistral", "deep"):
        with fake_cuda() as work:
            policy = on_cuda(name, dtype)
            work.clear()
            policy.logprobs(flatten(make_rows(40, 60, 40))).sum().backward()
            seen.append((dict(work.syncs), work.launches["masked_fill_"]))
    assert seen[0] == seen[1]
    assert seen[0][1] == (0 if dtype == torch.bfloat16 else 2)
