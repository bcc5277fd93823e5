"""The start policy's numbers for sequences, computed once and kept over runs in `models/.cache/reference/`.

The key is over what decides the numbers and nothing else: the weights of the start policy (base and start adapter), the
very token ids and loss masks that are scored, and the arithmetic. Tokenizer, chat template, maximal length and data
file all act through the token ids. So a second run on the same base and data runs no forward of the start policy,
whatever its learning rate, and any change that matters gives another key. Files may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_tuning.core.files import file_hash, flush, temporary_beside
from llm_tuning.data.token_rows import TokenSequence
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import ADAPTER_WEIGHTS
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.model import start_policy
from llm_tuning.trainers.output_tokens import TokenLayout, score_logprobs, start_states
from llm_tuning.trainers.parallel import any_rank
from llm_tuning.trainers.policy import Policy

log = logging.getLogger(__name__)

FOLDER = "reference"
DOING = "while scoring the start policy"


@dataclass(frozen=True)
class Part:
    """Numbers of the start policy that a recipe needs, as one tensor on the CPU, kept in a file of its own."""

    kind: str
    """What is computed of the sequences: "logprobs" of their tokens in the loss, or the "states" they come from."""
    sequences: Callable[[], Iterable[TokenSequence]]
    """What it is computed of, in the order of the tensor."""
    size: int
    """The first dimension of the tensor."""
    forwards: int
    """Forward passes that computing it takes, of all ranks."""
    compute: Callable[[], Tensor]
    """The tensor under the policy of the moment, the same on every rank; raises TryAgain when asked to stop."""


def logprobs_of_start(policy: Policy, batches: MicroBatches, layout: TokenLayout) -> Part:
    """Return the part of the log-probs (tokens,) of the layout's output tokens, fp32."""
    return _part("logprobs", batches, layout, lambda: score_logprobs(policy, batches, layout, DOING))


def states_of_start(policy: Policy, batches: MicroBatches, layout: TokenLayout) -> Part:
    """Return the part of the states (tokens, H) that the layout's output tokens are predicted from."""
    return _part("states", batches, layout, lambda: start_states(policy, batches, layout, DOING))


def _part(kind: str, batches: MicroBatches, layout: TokenLayout, compute: Callable[[], Tensor]) -> Part:
    def sequences() -> Iterable[TokenSequence]:
        return (sequence for index in layout.indices for sequence in batches.rows[int(index)].sequences)

    return Part(kind, sequences, layout.size, len(batches.cut(layout.indices, whole_rows=True)), compute)


def reference_of_start(run: TrainRun, policy: Policy, parts: Sequence[Part]) -> list[Tensor]:
    """Return the start policy's tensors for `parts`, from the cache or else computed and cached; alike on every rank.

    Raises InputError where the start policy gives no finite numbers, and TryAgain when asked to stop.
    """
    start = run.spec.start_adapter
    paths, found = [], []
    for part in parts:
        key = reference_key(
            base_weight_hash=run.spec.base_weight_hash,
            start_adapter_hash=file_hash(start / ADAPTER_WEIGHTS) if start else "",
            start_adapter_scale=run.config.lora.alpha / run.config.lora.rank if start else 0.0,
            quantization=run.config.model.quantization,
            dtype=policy.dtype,
            device=run.device,
            kind=part.kind,
            sequences=part.sequences(),
        )
        paths.append(run.cache / FOLDER / f"{key}.safetensors")
        kept = read_reference(paths[-1], size=part.size)
        found.append(None if any_rank(kept is None, run.device) else kept)
    if any(tensor is None for tensor in found):
        run.reporter.stage("scoring the start policy")
    tensors: list[Tensor] = []
    forwards = 0
    for part, path, kept in zip(parts, paths, found, strict=True):
        if kept is not None:
            tensors.append(kept)
            continue
        tensors.append(_computed(run, policy, part))
        forwards += part.forwards
        if run.is_main:
            write_reference(path, tensors[-1])
    run.reporter.metrics(0, {"train/reference_forwards": forwards})
    return tensors


def _computed(run: TrainRun, policy: Policy, part: Part) -> Tensor:
    with start_policy(policy.model):
        tensor = part.compute()
    if not tensor.isfinite().all():
        rule = f"gives log-probabilities that are not finite in {str(policy.dtype).removeprefix('torch.')}"
        raise InputError(Problem("model.path", rule, "set training.precision to fp32, or repair the model"))
    return tensor


def reference_key(
    *,
    base_weight_hash: str,
    start_adapter_hash: str,
    start_adapter_scale: float,
    quantization: str,
    dtype: torch.dtype,
    device: str,
    kind: str,
    sequences: Iterable[TokenSequence],
) -> str:
    """Hash (sha256, hex) all that decides the numbers of this `kind` of the `sequences`."""
    arithmetic = {
        "version": 3,
        "base": base_weight_hash,
        "start_adapter": [start_adapter_hash, start_adapter_scale],
        "quantization": quantization,
        "dtype": str(dtype),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kind": kind,
    }
    digest = hashlib.sha256(json.dumps(arithmetic, sort_keys=True).encode())
    for sequence in sequences:
        digest.update(len(sequence.input_ids).to_bytes(8, "little"))  # so that ids cannot be cut into other sequences
        digest.update(sequence.input_ids.tobytes())
        digest.update(sequence.learned.tobytes())
    return digest.hexdigest()


def read_reference(path: Path, *, size: int) -> Tensor | None:
    """Read the tensor in `path`, None where there is none or it is damaged: then it is computed again."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            found: Tensor = file.get_tensor(FOLDER)
            checksum = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        log.warning("%s is damaged: the start policy is scored again", path)
        return None
    whole = len(found) == size and checksum == _checksum(found)
    if not whole:
        log.warning("%s does not hold what it should: the start policy is scored again", path)
    return found if whole else None


def write_reference(path: Path, tensor: Tensor) -> None:
    """Write `tensor` in one step. A cache that cannot be written costs the next run time, and this one nothing."""
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({FOLDER: tensor.contiguous()}, temporary, metadata={"sha256": _checksum(tensor)})
        flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        log.warning("%s could not be written (%s); the next run scores the start policy again", path, error)


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
