"""The start policy's numbers for the rows, computed once and kept over runs in `models/.cache/reference/`.

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
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_tuning.core.files import file_hash, flush, temporary_beside
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import ADAPTER_WEIGHTS
from llm_tuning.run.context import TrainRun
from llm_tuning.trainers.batching import Indices
from llm_tuning.trainers.micro_batches import MicroBatches
from llm_tuning.trainers.model import start_policy
from llm_tuning.trainers.output_tokens import TokenLayout, score_rows, start_states
from llm_tuning.trainers.parallel import any_rank
from llm_tuning.trainers.policy import Policy

log = logging.getLogger(__name__)

FOLDER = "reference"


@dataclass(frozen=True)
class Reference:
    """`logprobs` (tokens,): of the training rows' output tokens, fp32. `kl_states` (M, H): the states that the M output
    tokens of the rows of the KL measurement are predicted from. Both in the order of their rows, on the CPU."""

    logprobs: Tensor
    kl_states: Tensor


def reference_of_start(
    run: TrainRun, policy: Policy, batches: MicroBatches, layout: TokenLayout, kl_layout: TokenLayout
) -> Reference:
    """Return the start policy's Reference, from the cache or else computed and cached; the same on every rank."""
    start = run.spec.start_adapter
    key = reference_key(
        base_weight_hash=run.spec.base_weight_hash,
        start_adapter_hash=file_hash(start / ADAPTER_WEIGHTS) if start else "",
        start_adapter_scale=run.config.lora.alpha / run.config.lora.rank if start else 0.0,
        quantization=run.config.model.quantization,
        dtype=policy.dtype,
        device=run.device,
        rows=batches.rows,
        scored=layout.indices,
        measured=kl_layout.indices,
    )
    path = run.cache / FOLDER / f"{key}.safetensors"
    found = read_reference(path, tokens=layout.size, kl_tokens=kl_layout.size)
    if not any_rank(found is None, run.device):
        assert found is not None
        run.reporter.metrics(0, {"train/reference_forwards": 0})
        return found

    doing = "while scoring the start policy"
    run.reporter.stage("scoring the start policy")
    with start_policy(policy.model):
        logprobs, _ = score_rows(policy, batches, layout, layout.indices, doing)
        kl_states = start_states(policy, batches, kl_layout, doing)
    if not logprobs.isfinite().all():
        rule = f"gives log-probabilities that are not finite in {str(policy.dtype).removeprefix('torch.')}"
        raise InputError(Problem("model.path", rule, "set training.precision to fp32, or repair the model"))
    found = Reference(logprobs, kl_states)
    if run.is_main:
        write_reference(path, found)
    forwards = len(batches.cut(layout.indices)) + len(batches.cut(kl_layout.indices))
    run.reporter.metrics(0, {"train/reference_forwards": forwards})
    return found


def reference_key(
    *,
    base_weight_hash: str,
    start_adapter_hash: str,
    start_adapter_scale: float,
    quantization: str,
    dtype: torch.dtype,
    device: str,
    rows: TokenRows,
    scored: Indices,
    measured: Indices,
) -> str:
    """Hash (sha256, hex) all that decides a `Reference` of the rows `scored` (log-probs) and `measured` (states)."""
    arithmetic = {
        "version": 2,
        "base": base_weight_hash,
        "start_adapter": [start_adapter_hash, start_adapter_scale],
        "quantization": quantization,
        "dtype": str(dtype),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    digest = hashlib.sha256(json.dumps(arithmetic, sort_keys=True).encode())
    for indices in (scored, measured):
        digest.update(len(indices).to_bytes(8, "little"))
        digest.update(rows.lengths[indices].tobytes())  # so that the ids below cannot be cut into other rows
        for index in indices:
            row = rows[int(index)]
            digest.update(row.input_ids.tobytes())
            digest.update(row.learned.tobytes())
    return digest.hexdigest()


def read_reference(path: Path, *, tokens: int, kl_tokens: int) -> Reference | None:
    """Read the reference in `path`, None where there is none or it is damaged: then it is computed again."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = Reference(file.get_tensor("logprobs"), file.get_tensor("kl_states"))
            checksum = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError):
        log.warning("%s is damaged: the start policy is scored again", path)
        return None
    whole = found.logprobs.shape == (tokens,) and len(found.kl_states) == kl_tokens and checksum == _checksum(found)
    if not whole:
        log.warning("%s does not hold what it should: the start policy is scored again", path)
    return found if whole else None


def write_reference(path: Path, reference: Reference) -> None:
    """Write `reference` in one step. A cache that cannot be written costs the next run time, and this one nothing."""
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"logprobs": reference.logprobs.contiguous(), "kl_states": reference.kl_states.contiguous()}
        save_file(tensors, temporary, metadata={"sha256": _checksum(reference)})
        flush(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        log.warning("%s could not be written (%s); the next run scores the start policy again", path, error)


def _checksum(reference: Reference) -> str:
    digest = hashlib.sha256()
    for tensor in (reference.logprobs, reference.kl_states):
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
