"""What a trainer allocates on its device, part by part.

Symbols: T tokens of a micro-batch, L layers, h hidden size, Q and K elements of query and key, I intermediate size, V
vocabulary, r rank, P parameters of the adapter, b bytes of a number in it (2 in bf16, 4 in fp32).

- Base: its parameters in b bytes, frozen, so without gradients or optimizer states. In 4 bits: NF4 with double
  quantisation, 4.127 bits a number (QLoRA, arXiv 2305.14314, section 3); embeddings, output layer and norms stay whole.
- Adapter: weights, gradients and AdamW's two moments in fp32, 16 P (as in ZeRO, arXiv 1910.02054, section 3.1, without
  its fp16 copies). Autocast keeps a bf16 copy of the weights during a micro-batch. Several GPUs lay the
  gradients end to end once more, and their sum.
- Activations: what autograd keeps for the backward pass of a decoder whose matrices are frozen. A frozen matrix keeps
  nothing of its input. Kept are: the fp32 input of each norm; query, key, value and output of the attention (flash
  attention, arXiv 2205.14135: no T x T scores); gate, up and activated gate of the MLP; the inputs of adapters (with
  dropout the mask, too, 1 byte on CUDA); and r numbers between A and B. Checkpointing keeps each layer's
  input instead (arXiv 1604.06174), and all of one layer at a time.
- Output layer: `trainers.head` keeps h numbers a token in the loss and sees a chunk of logits at a time, with copies
  where they are scaled or capped.
- Passing: gradients on their way through a layer, taken as four tensors of its widest size.

Not modelled: convolutions and recurrent states, attention that is not flash (soft caps, sinks), the fused experts of a
mixture. Fragmentation is taken as a tenth of the activations, and the CUDA context with cuBLAS's workspace as 0.8 GiB:
both assumptions, not yet measured by this project.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_tuning.models.shape import Linear, ModelShape, adapter_parameters, distinct_inputs
from llm_tuning.modes import Memory
from llm_tuning.run.devices import positions_at_a_time

GIB = 2**30
CUDA_CONTEXT_BYTES = int(0.8 * GIB)
PROCESS_BYTES = GIB
"""A Python process with torch, transformers, PEFT, TRL and MLflow; for training on a CPU, and beside a GPU."""
AGENT_BYTES = int(0.3 * GIB)
"""The process that runs torchrun's agent where there are several: Python with torch, measured on a CPU."""
FRAGMENTATION = 0.1
FOUR_BITS = 4.127 / 8


@dataclass(frozen=True)
class Setting:
    """How a run goes through the model."""

    memory: Memory
    """What the mode holds."""
    rank: int
    dropout: bool
    tokens: int
    """Of the largest micro-batch."""
    learned: int
    """Those in the loss among them, at most."""
    number_bytes: int
    """2 in bf16, 4 in fp32."""
    four_bits: bool
    checkpointing: bool
    cuda: bool
    processes: int
    """One for each GPU."""
    start_adapter: bool


@dataclass(frozen=True)
class Part:
    """One entry of the bill."""

    name: str
    size: int
    """Bytes."""
    how: str


def base_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the bytes of the frozen base on the device."""
    if not setting.four_bits:
        return shape.parameters * setting.number_bytes
    quantised = sum(linear.size for linear in shape.linears)
    return int(quantised * FOUR_BITS) + (shape.parameters - quantised) * setting.number_bytes


def activation_bytes(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> int:
    """Compute the bytes that autograd keeps of a micro-batch, up to the last norm."""
    b, tokens = setting.number_bytes, setting.tokens
    kept = 4 * shape.norms
    kept += shape.layers * b * (2 * shape.query + 2 * shape.key + 3 * shape.intermediate)
    mask = (1 if setting.cuda else b) if setting.dropout else 0
    kept += int(distinct_inputs(targets) * (b + mask))
    kept += int(sum(linear.share for linear in targets) * b * setting.rank)
    if setting.checkpointing:
        return tokens * (shape.layers * b * shape.hidden + kept // shape.layers)
    return tokens * kept


def head_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the bytes from the last hidden states to the loss."""
    b, vocabulary = setting.number_bytes, shape.vocabulary
    states = setting.learned * shape.hidden * 2 * b
    if setting.memory.value_head:
        states += setting.learned * shape.hidden * 4
    at_a_time = positions_at_a_time(vocabulary, "cuda" if setting.cuda else "cpu")
    logits = min(at_a_time, setting.learned) * vocabulary
    slope_of_cap = 0 if shape.head_is_plain else 4
    return states + logits * (8 + slope_of_cap)  # logits and log-probabilities in fp32


def device_parts(shape: ModelShape, targets: tuple[Linear, ...], setting: Setting) -> list[Part]:
    """List what one device allocates, in bytes; parts of size 0 are left out."""
    count, b = adapter_parameters(targets, setting.rank), setting.number_bytes
    width = max(shape.intermediate, shape.query + 2 * shape.key, shape.hidden)
    activations = activation_bytes(shape, targets, setting)
    dtype = "4 bits" if setting.four_bits else {2: "bf16", 4: "fp32"}[b]
    how = "checkpointed" if setting.checkpointing else "all layers"
    parts = [
        Part("base", base_bytes(shape, setting), f"{shape.parameters:,} parameters in {dtype}"),
        Part("adapter", count * (4 + (b if b != 4 else 0)), f"{count:,} parameters in fp32"),
        Part("gradients", count * (4 + (8 if setting.processes > 1 else 0)), "of the adapter, fp32"),
        Part("optimizer", count * 8, "AdamW's two moments, fp32"),
        Part("start adapter", count * 4 if setting.start_adapter else 0, "a frozen copy"),
        Part("activations", activations, f"{setting.tokens:,} tokens a pass, {how}"),
        Part("output layer", head_bytes(shape, setting), "hidden states, and a chunk of the logits"),
        Part("passing", 4 * setting.tokens * width * b, "gradients within a layer"),
        Part("fragmentation", int(FRAGMENTATION * activations), f"assumed: {FRAGMENTATION:.0%} of the activations"),
    ]
    if setting.cuda:
        parts.append(Part("CUDA context", CUDA_CONTEXT_BYTES, "assumed"))
    else:
        parts.append(Part("process", PROCESS_BYTES, "assumed: Python and its libraries"))
    return [part for part in parts if part.size]


def host_bytes(shape: ModelShape, setting: Setting) -> int:
    """Compute the pod's memory beside GPUs: each process reads the base into it in the run's precision and sends it on.

    In 4 bits weights go to the GPU one after the other.
    """
    base = 0 if setting.four_bits else shape.parameters * setting.number_bytes
    return setting.processes * (base + PROCESS_BYTES) + (AGENT_BYTES if setting.processes > 1 else 0)
