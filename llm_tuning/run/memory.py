"""What a trainer allocates on its device, part by part.

Symbols: T tokens of a micro-batch, L layers, h hidden size, Q and K elements of query and key, I intermediate size, V
vocabulary, r rank, P parameters of the adapter, b bytes of a number in it (2 in bf16, 4 in fp32).

- Base: its parameters in b bytes, frozen, so without gradients or optimizer states. In 4 bits: NF4 with double
  quantisation, 4.127 bits a number (QLoRA, arXiv 2305.14314, section 3); embeddings, output layer and norms stay whole.
  Sharded over G GPUs each holds a G-th. What runs is whole for a moment: the layer, the next one on its way and the
  buffer of one of the two; or embeddings or output layer, and their buffer (torch's FSDP2; by estimate).
- Adapter: weights, gradients and AdamW's two moments in fp32, 16 P (as in ZeRO, arXiv 1910.02054, section 3.1, without
  its fp16 copies). Autocast keeps a bf16 copy of the weights during a micro-batch. Several GPUs lay the
  gradients end to end once more, and their sum.
- Activations: what autograd keeps for the backward pass of a decoder whose matrices are frozen. A frozen matrix keeps
  nothing of its input. Kept are: the fp32 input of each norm; query, key, value and output of the attention (flash
  attention, arXiv 2205.14135: no T x T scores; in fp32 on a GPU another kernel, for which grouped keys are repeated);
  gate, up and activated gate of the MLP; the inputs of adapters (with dropout the mask, too, 1 byte on CUDA); and r
  numbers between A and B. Checkpointing keeps each layer's input instead (arXiv 1604.06174).
- Output layer: `trainers.head` keeps h numbers of state and h of slope a token in the loss.
- At the peak comes what is there for a moment, the larger of two: a chunk of logits in fp32 and their
  log-probabilities, at the end of the forward pass; and in the backward pass gradients within a layer, three tensors of
  its widest size, and under checkpointing all of one layer at a time.
- An evaluation, and a mode's scoring of its rows, goes forward only and keeps nothing, but its micro-batches are full
  where those of a small step are not: two states and five tensors of a layer's widest size, or a chunk of logits.
- 4 bits: a product needs its matrix whole for a moment.
- Several GPUs: NCCL's buffers. A rank sees its own GPU alone, so no other rank has a context there.

Tests hold the peak of a micro-batch, forward and backward, to what torch allocates on a CPU, and to what its operations
give back on CUDA's FakeTensors, which have no numbers. Not modelled: convolutions
and recurrent states, attention with soft caps or sinks, the fused experts of a mixture, models that make logits of
every position since their output layer is not a plain one. Fragmentation is taken as a tenth of the activations, the
CUDA context with cuBLAS's workspace as 0.8 GiB, NCCL as 1 GiB: assumptions, not yet measured by this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_tuning.models.shape import Linear, ModelShape, adapter_parameters, distinct_inputs
from llm_tuning.run.devices import positions_at_a_time
from llm_tuning.run.setting import Setting

GIB = 2**30
CUDA_CONTEXT_BYTES = int(0.8 * GIB)
NCCL_BYTES = GIB
"""Buffers of its channels, on each of several GPUs."""
PROCESS_BYTES = GIB
"""A Python process with torch, transformers, PEFT, TRL and MLflow that trains on a CPU."""
CUDA_PROCESS_BYTES = 2 * GIB
"""The memory beside a GPU of a process with CUDA's libraries in it: assumed."""
AGENT_BYTES = int(0.3 * GIB)
"""The process that runs torchrun's agent where there are several: Python with torch, measured on a CPU."""
FRAGMENTATION = 0.1
FOUR_BITS = 4.127 / 8
BACKWARD_TENSORS = 3
FORWARD_TENSORS = 5
"""Tensors of a layer's widest size that are there at once, as measured on a CPU."""


@dataclass(frozen=True)
class Part:
    """One entry of the bill."""

    name: str
    size: int
    """Bytes."""
    how: str


def base_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the bytes of the frozen base that lie on the device."""
    if not setting.four_bits:
        return -(-shape.parameters * setting.number_bytes // setting.shards)
    quantised = sum(linear.size for linear in shape.linears)
    return int(quantised * FOUR_BITS) + (shape.parameters - quantised) * setting.number_bytes


def gathered_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the bytes of a sharded base's modules that are whole at a time."""
    if setting.shards == 1:
        return 0
    layer = shape.largest_layer or sum(linear.size for linear in shape.linears) // shape.layers
    return max(3 * layer, 2 * shape.vocabulary * shape.hidden) * setting.number_bytes


def layers_bytes(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> int:
    """Compute the bytes that all layers keep of a micro-batch for the backward pass, without checkpointing."""
    b = setting.number_bytes
    key = shape.query if setting.cuda and b == 4 else shape.key
    kept = 4 * shape.norms
    kept += shape.layers * b * (2 * shape.query + 2 * key + 3 * shape.intermediate)
    mask = (1 if setting.cuda else b) if setting.dropout else 0
    kept += int(distinct_inputs(targets) * (b + mask))
    kept += int(sum(linear.share for linear in targets) * b * setting.rank)
    return setting.tokens * kept


def activation_bytes(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> int:
    """Compute the bytes that autograd keeps of a micro-batch up to the last norm, when its forward pass is done."""
    if setting.checkpointing:
        return setting.tokens * shape.layers * setting.number_bytes * shape.hidden
    return layers_bytes(shape, targets, setting)


def states_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the bytes that are kept of the tokens in the loss: states and slopes, and states in fp32 for values."""
    numbers = 2 * setting.number_bytes + (4 if setting.memory.value_head else 0)
    return setting.learned * shape.hidden * numbers


def chunk_bytes(shape: ModelShape, setting: Setting, learned: int) -> int:
    """Compute the bytes of a chunk of logits in fp32 and of their log-probabilities."""
    positions = min(positions_at_a_time(shape.vocabulary, "cuda" if setting.cuda else "cpu"), learned)
    slope_of_cap = 0 if shape.head_is_plain else 4
    return positions * shape.vocabulary * (8 + slope_of_cap)


def backward_bytes(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> int:
    """Compute the bytes that a layer needs for a moment on the way back, all of its own under checkpointing."""
    again = layers_bytes(shape, targets, setting) // shape.layers if setting.checkpointing else 0
    return BACKWARD_TENSORS * setting.tokens * _widest(shape) * setting.number_bytes + again


def device_parts(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> list[Part]:
    """List what one device has allocated at the peak of a training step, in bytes; parts of size 0 are left out."""
    count = adapter_parameters(targets, setting.rank)
    activations = activation_bytes(shape, targets, setting)
    chunk, back = chunk_bytes(shape, setting, setting.learned), backward_bytes(shape, targets, setting)
    kept = "the inputs of layers" if setting.checkpointing else "all layers"
    again = ", one layer's activations" if setting.checkpointing else ""
    moment = ("a chunk of logits", chunk) if chunk > back else (f"gradients within a layer{again}", back)
    several = setting.ranks > 1
    return _parts(
        *_resident(shape, count, setting),
        Part("gradients", count * (4 + (8 if several else 0)), "of the adapter, fp32"),
        Part("activations", activations, f"{setting.tokens:,} tokens a pass, {kept}"),
        Part("output layer", states_bytes(shape, setting), f"states and slopes of {setting.learned:,} tokens"),
        Part("at the peak", moment[1], moment[0]),
        Part("fragmentation", int(FRAGMENTATION * activations), f"assumed: {FRAGMENTATION:.0%} of the activations"),
        *_surroundings(shape, setting),
    )


def evaluation_parts(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> list[Part]:
    """List what one device has allocated at the peak of an evaluation, or of a pass that scores rows."""
    if setting.scored == 0:
        return []
    b = setting.number_bytes
    learned = setting.scored * setting.learned // setting.tokens
    forward = setting.scored * b * (FORWARD_TENSORS * _widest(shape) + 2 * shape.hidden)
    states = b * shape.hidden * (setting.scored + learned)
    chunk = states + chunk_bytes(shape, setting, learned)
    moment = ("a chunk of logits", chunk) if chunk > forward else ("within a layer", forward)
    return _parts(
        *_resident(shape, adapter_parameters(targets, setting.rank), setting),
        Part("forward pass", moment[1], f"{setting.scored:,} tokens, {moment[0]}"),
        *_surroundings(shape, setting),
    )


def peak_bytes(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> int:
    """Compute the most bytes that one device has allocated, in training or in an evaluation."""
    return max(total(device_parts(shape, targets, setting)), total(evaluation_parts(shape, targets, setting)))


def total(parts: Sequence[Part]) -> int:
    """Sum a bill."""
    return sum(part.size for part in parts)


def host_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the pod's memory beside GPUs: processes, and a few tensors of the base on their way to each GPU.

    Four tensors are read at a time (transformers' loader); the largest are embeddings, output layer, and two matrices.
    What the kernel keeps of the weight files goes when another needs the memory.
    """
    largest = max(linear.size for linear in shape.linears)
    on_the_way = 2 * (shape.vocabulary * shape.hidden + largest) * setting.number_bytes // setting.shards
    return setting.processes * (CUDA_PROCESS_BYTES + on_the_way) + (AGENT_BYTES if setting.ranks > 1 else 0)


def _resident(shape: ModelShape, count: int, setting: Setting) -> list[Part]:
    """List what is there from the loading to the end, for an adapter of `count` parameters."""
    b = setting.number_bytes
    dtype = "4 bits" if setting.four_bits else {2: "bf16", 4: "fp32"}[b]
    share = f", one of {setting.shards} parts" if setting.shards > 1 else ""
    return [
        Part("base", base_bytes(shape, setting), f"{shape.parameters:,} parameters in {dtype}{share}"),
        Part("whole layers", gathered_bytes(shape, setting), "of a sharded base, while they run: by estimate"),
        Part("adapter", count * (4 + (b if b != 4 else 0)), f"{count:,} parameters in fp32"),
        Part("start adapter", count * 4 if setting.start_adapter else 0, "a frozen copy"),
        Part("optimizer", count * 8, "AdamW's two moments, fp32"),
    ]


def _surroundings(shape: ModelShape, setting: Setting) -> list[Part]:
    whole = max(linear.size for linear in shape.linears) * setting.number_bytes if setting.four_bits else 0
    parts = [Part("a matrix", whole, "the largest one, out of its 4 bits")]
    if setting.cuda:
        parts.append(Part("NCCL", NCCL_BYTES if setting.ranks > 1 else 0, "assumed: its buffers"))
        parts.append(Part("CUDA context", CUDA_CONTEXT_BYTES, "assumed"))
    else:
        parts.append(Part("process", PROCESS_BYTES, "assumed: Python and its libraries"))
    return parts


def _widest(shape: ModelShape) -> int:
    return max(shape.intermediate, shape.query + 2 * shape.key, shape.hidden)


def _parts(*parts: Part) -> list[Part]:
    return [part for part in parts if part.size]
