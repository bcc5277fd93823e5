"""The names of a run's figures, each under three roofs and in this one table.

    in the run (MLflow, metrics.jsonl)    on the wire (Kubeflow's status protocol)    in status.progress, in a JSON line
    train/loss                            loss                                        loss
    eval/loss                             eval_loss                                   - , evalLoss
    train/tokens_per_second               tokens_per_second                           tokensPerSecond
    -                                     current_step, total_steps, current_epoch    step, totalSteps, epoch
    -  (of a fetch)                       bytes, total_bytes, bytes_per_second        bytes, totalBytes, bytesPerSecond

MLflow groups by what stands before the slash; the wire has the names of transformers' KubeflowCallback; `Progress` in
`llm_tuning.api` has Kubernetes' form. A metric that the table lacks keeps its name, with `wire_name` on the wire.
"""

from __future__ import annotations

LOSS, HELD_OUT_LOSS = "train/loss", "eval/loss"
TOKENS_PER_SECOND = "train/tokens_per_second"

ON_THE_WIRE = {
    "step": "current_step",
    "total_steps": "total_steps",
    "epoch": "current_epoch",
    "loss": "loss",
    "tokens_per_second": "tokens_per_second",
    "bytes": "bytes",
    "total_bytes": "total_bytes",
    "bytes_per_second": "bytes_per_second",
}
"""Fields of `Progress` that travel as a metric, by their names on the wire."""


MODEL_REVISION, DATASET_REVISION = "model_revision", "dataset_revision"
WAITING_REASON, WAITING_MESSAGE = "waiting_reason", "waiting_message"
"""Texts on the wire: what the URIs of a fetch were resolved to, and what a pod at work waits for."""
SLOW_RANK = "SlowRank"
"""What a training of several ranks may wait for."""


def wire_name(metric: str) -> str:
    """Return a metric's name on the wire: `train/loss` is `loss`, `eval/loss` is `eval_loss`."""
    return metric.removeprefix("train/").replace("/", "_")
