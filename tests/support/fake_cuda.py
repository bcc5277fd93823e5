"""CUDA without a GPU: tensors on `cuda` that have a dtype, a shape and a device, but no numbers.

torch's FakeTensors go through the dispatch of a real card: its autocast rules, its checks of devices and dtypes, its
autograd. What needs a card is put in its place here: `backward`, whose engine asks for a CUDA context, walks the
graph in Python; a number that leaves the card (`item`, `tolist`, `to("cpu")`) is one; and
`scaled_dot_product_attention`, which asks the card for its kernel, takes the one an Ampere or newer card would take.

Tensors on the CPU stay real. Inside `fake_cuda()` the project's own code runs as it is: `model.to(DEVICE)`,
`Policy(...)`, `loss.backward()`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_iter

aten = torch.ops.aten

DEVICE = "cuda:0"

NO_KERNEL = {aten.detach.default, aten.empty.memory_format, aten.empty_strided.default, aten.new_empty.default}
NO_KERNEL |= {aten.empty_like.default, aten.lift_fresh.default, aten.new_empty_strided.default}
NO_KERNEL |= {aten._unsafe_view.default}
"""Operations that launch nothing, besides views."""


@dataclass
class Work:
    """What a piece of code asked of the card."""

    launches: Counter[str] = field(default_factory=Counter)
    """Operations on CUDA tensors by name, views and allocations left out: a kernel each, some a few."""
    syncs: Counter[str] = field(default_factory=Counter)
    """Times that the host waits for the card: for a number read from it, for a copy of memory that is not pinned."""
    left: list[int] = field(default_factory=list)
    """Launches that the card has yet to do when the host goes on, of each wait: with none it is idle then."""
    bytes_read: Counter[int] = field(default_factory=Counter)
    """Bytes that operations took from each storage, by its address: see `read_of`."""
    held: int = 0
    """Bytes on the card now, without what a kernel takes for itself."""
    peak: int = 0
    """The most that `held` was."""

    def read_of(self, tensor: Tensor) -> int:
        """Return the bytes that operations read of the storage of `tensor`."""
        return self.bytes_read[_address(tensor)]

    def clear(self) -> None:
        """Count from zero; the peak from what is held."""
        self.peak = self.held
        self.left.clear()
        for counter in (self.launches, self.syncs, self.bytes_read):
            counter.clear()


@contextmanager
def fake_cuda() -> Iterator[Work]:
    """Give the block a CUDA device of the kind described above; what it is asked to do is counted in the Work."""
    work = Work()
    with ExitStack() as stack:
        # Ask a card that is not there nothing.
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        stack.enter_context(patch("torch.cuda.is_bf16_supported", lambda **_: True))
        stack.enter_context(patch("torch.cuda._lazy_init", lambda: None))
        stack.enter_context(patch("torch.cuda.set_device", lambda _device: None))
        stack.enter_context(patch("torch.cuda.current_stream", lambda *_: _Stream(work)))
        stack.enter_context(patch("torch.cuda.get_device_capability", lambda *_: (9, 0)))
        stack.enter_context(patch("torch.cuda.get_device_name", lambda *_: "Fake GPU"))
        # transformers takes fake tensors for a traced graph, and makes masks that it leaves out in a real run.
        stack.enter_context(patch("transformers.utils.import_utils.is_fake_tensor", lambda _tensor: False))
        stack.enter_context(patch.object(Tensor, "backward", backward))
        stack.enter_context(patch.object(FakeTensor, "tolist", _tolist))
        types = [*_foreach_utils._foreach_supported_types, FakeTensor]
        stack.enter_context(patch.object(_foreach_utils, "_foreach_supported_types", types))
        stack.enter_context(patch.object(nn.Module, "_apply", _apply))
        stack.callback(torch.clear_autocast_cache)
        stack.enter_context(_ChosenAttention())
        stack.enter_context(_FakeOnCuda(work))
        yield work


@dataclass
class _Stream:
    """The card's queue, which does one thing after another."""

    work: Work

    def record_event(self) -> _Event:
        return _Event(self.work, self.work.launches.total())


@dataclass
class _Event:
    """A place in the queue."""

    work: Work
    at: int

    def synchronize(self) -> None:
        self.work.syncs["event"] += 1
        self.work.left.append(self.work.launches.total() - self.at)


class _FakeOnCuda(FakeTensorMode):
    """Runs what touches CUDA with fake tensors, and all else for real."""

    def __init__(self, work: Work) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.work = work
        self._within = False
        """An operation of torch's own, by which it computes a fake result: no second one of the code under test."""
        self._seen: set[int] = set()
        self._pinned: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        fakes = [tensor for tensor in given if isinstance(tensor, FakeTensor)]
        if func is aten.is_pinned.default:
            return _address(args[0]) in self._pinned
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            self._pinned.add(_address(pinned))
            weakref.finalize(pinned.untyped_storage(), self._pinned.discard, _address(pinned))
            return pinned
        wanted = kwargs.get("device")
        onto = wanted is not None and torch.device(wanted).type == "cuda"
        if not fakes and not onto:
            return func(*args, **kwargs)
        on_card = onto or any(tensor.device.type == "cuda" for tensor in fakes)
        if on_card and not self._within:
            self._count(func, args, kwargs, given)
        if func is aten._to_copy.default and not onto and wanted is not None and on_card and not self._within:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten._local_scalar_dense.default:
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if func in {aten.equal.default, aten.allclose.default}:
            return True
        if func is aten.mm.dtype:
            assert args[0].dtype == args[1].dtype, f"a card multiplies no {args[0].dtype} by {args[1].dtype}"
        within, self._within = self._within, True
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            self._within = within
        if not within:
            self._hold(result)
        return result

    def _waits(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Return whether a copy stops the host: all between card and CPU but a non-blocking one of pinned memory.

        What `to("cpu", non_blocking=True)` makes is pinned.
        """
        if func is aten.copy_.default:
            to, of = args[0].device, args[1]
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            of = args[0]
            to, non_blocking = torch.device(kwargs.get("device") or of.device), kwargs.get("non_blocking", False)
        if to.type == of.device.type:
            return False
        pinned = _address(of) in self._pinned if of.device.type == "cpu" else func is aten._to_copy.default
        return not (non_blocking and pinned)

    def _hold(self, result: Any) -> None:
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda" and _address(tensor) not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(_address(tensor))
                self.work.held += storage.nbytes()
                self.work.peak = max(self.work.peak, self.work.held)
                weakref.finalize(storage, self._let_go, _address(tensor), storage.nbytes())

    def _let_go(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.work.held -= size

    def _count(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> None:
        name = func.overloadpacket.__name__
        reads = func in {aten._local_scalar_dense.default, aten.equal.default, aten.allclose.default}
        if reads or (func in {aten._to_copy.default, aten.copy_.default} and self._waits(func, args, kwargs)):
            self.work.syncs[name] += 1
            self.work.left.append(0)
        if func.is_view or func.namespace == "prim" or func in NO_KERNEL:
            return
        self.work.launches[name] += 1
        if func is aten.embedding.default:  # reads the rows of its ids alone
            return
        for tensor in given:
            if tensor.device.type == "cuda":
                self.work.bytes_read[_address(tensor)] += tensor.numel() * tensor.element_size()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _ChosenAttention(TorchFunctionMode):
    """sdpa on CUDA by the kernel that torch takes on a card: flash, else memory-efficient, else plain products."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and args[0].device.type == "cuda":
            return _attention(func, *args, **kwargs)
        return func(*args, **kwargs)


def _attention(  # noqa: PLR0917 - sdpa's own arguments
    plain: Callable[..., Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    rest = {"scale": scale}
    half = query.dtype in {torch.bfloat16, torch.float16}
    if half and attn_mask is None and query.shape[-1] <= 256:
        out: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, **rest)[0]
        return out
    if not enable_gqa:
        needs = any(tensor.requires_grad for tensor in (query, key, value)) and torch.is_grad_enabled()
        bias = attn_mask
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
        if bias is not None:
            bias = bias.expand(*query.shape[:-1], key.shape[-2])
        arguments = (query, key, value, bias, needs, dropout_p, is_causal)
        out = aten._scaled_dot_product_efficient_attention(*arguments, **rest)[0]
    else:
        out = plain(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa=enable_gqa, **rest)
    return out


def backward(loss: Tensor, gradient: Tensor | None = None) -> None:
    """Add the gradients of `loss` to the `grad` of its leaves, as `Tensor.backward`, without autograd's engine.

    Like the engine it hands each node gradients of the dtype and shape of that node's output.
    """
    assert loss.grad_fn is not None
    given: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss) if gradient is None else gradient]}
    with torch.no_grad():
        for node in _from_outputs_to_leaves(loss.grad_fn):
            gradients = given.pop(node, None)
            if gradients is None or all(one is None for one in gradients):
                continue
            if node.name() == "torch::autograd::AccumulateGrad":
                leaf, (found,) = node.variable, gradients
                leaf.grad = found if leaf.grad is None else leaf.grad.add_(found)
                continue
            for (before, at), one in _gradients_of_inputs(node, gradients):
                if before is None or one is None:
                    continue
                slots = given.setdefault(before, [None] * len(before._input_metadata))
                known, new = slots[at], _as_output(one, before._input_metadata[at])
                slots[at] = new if known is None else known + new


def _gradients_of_inputs(node: Any, gradients: list[Tensor | None]) -> list[tuple[tuple[Any, int], Tensor | None]]:
    """Call `node`; returns (what the input comes from, its gradient) of each input."""
    if not isinstance(node, torch.autograd.function.BackwardCFunction):
        back = node(*gradients)
        return list(zip(node.next_functions, back if isinstance(back, tuple) else (back,), strict=True))
    back = node.apply(*gradients)  # gives None, too, for what is no tensor and has no place in next_functions
    back = back if isinstance(back, tuple) else (back,)
    needed = [one for one, needs in zip(back, node.needs_input_grad, strict=False) if needs]
    return list(zip([before for before in node.next_functions if before[0] is not None], needed, strict=True))


def _as_output(gradient: Tensor, output: Any) -> Tensor:
    assert gradient.device == output.device, f"a gradient on {gradient.device} of an output on {output.device}"
    return gradient.sum_to_size(output.shape).to(output.dtype)


def _from_outputs_to_leaves(root: Any) -> list[Any]:
    done: list[Any] = []
    seen, waiting = {root}, [(root, iter(root.next_functions))]
    while waiting:
        node, inputs = waiting[-1]
        below = next((before for before, _ in inputs if before is not None and before not in seen), None)
        if below is None:
            done.append(node)
            waiting.pop()
        else:
            seen.add(below)
            waiting.append((below, iter(below.next_functions)))
    return done[::-1]


def _tolist(tensor: Tensor) -> Any:
    """Read all numbers by one copy, as on a card."""
    return tensor.cpu().tolist()


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Do what `nn.Module.to` and its like do, for parameters that have no memory to put other numbers into."""
    for child in module.children() if recurse else ():
        child._apply(change)
    for name, parameter in list(module._parameters.items()):
        if parameter is None:
            continue
        with torch.no_grad():
            changed = change(parameter)
        if changed is not parameter:
            module._parameters[name] = nn.Parameter(changed, requires_grad=parameter.requires_grad)
    for name, buffer in list(module._buffers.items()):
        if buffer is not None:
            module._buffers[name] = change(buffer)
    return module


def onto_cuda(model: nn.Module) -> nn.Module:
    """Move `model` (it may be on "meta") to the fake card in place; weights that were one tensor stay one.

    Call it inside `fake_cuda`.
    """
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                on_card = nn.Parameter(
                    torch.empty_like(parameter, device=DEVICE), requires_grad=parameter.requires_grad
                )
                module._parameters[name] = moved.setdefault(id(parameter), on_card)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=DEVICE)
    return model
