"""A status of each kind in which every field is written, with the fields of what it holds."""

from __future__ import annotations

from typing import Any

from llm_tuning.api import Condition, Evaluation, Progress, TuningJobStatus
from llm_tuning.api.inference_service import AdapterStatus, InferenceServiceStatus
from llm_tuning.api.sources import FetchProgress, SourceStatus
from llm_tuning.api.tuning_job import Attempts, NodeStatus

CONDITION = Condition(type="Ready", status="Unknown", reason="Waiting", message="step 4", observed_generation=1)
SOURCE = SourceStatus(uri="hf://team/base@main", revision="0" * 40, path="sources/hf/team/base/" + "0" * 40)
FETCHED: dict[str, Any] = {"bytes": 4, "total_bytes": 10, "bytes_per_second": 1.5, "remaining_seconds": 6}
JOB_STATUS = TuningJobStatus(
    observed_generation=1,
    phase="Training",
    model_id="ft_sft_tiny_1_abcdef",
    adapter_path="models/ft_sft_tiny_1_abcdef",
    mlflow_run_id="0123",
    job_name="status-train",
    start_time="2026-01-01T00:00:00Z",
    completion_time="2026-01-01T00:00:00Z",
    start_adapter_model_id="ft_sft_tiny_0_abcdef",
    progress=Progress(percent=40, step=4, total_steps=10, epoch=0.4, loss=1.5, tokens_per_second=9.5, **FETCHED),
    evaluation=Evaluation.model_validate(
        {name: 5 if name == "held_out_rows" else 1.5 for name in Evaluation.model_fields}
    ),
    conditions=[CONDITION],
    model=SOURCE,
    dataset=SOURCE,
    nodes=[NodeStatus(index=1, ranks="2-3", pod="status-train-1-x7k2p", node="gpu-b", state="Running")],
    attempts=Attempts(failed=1, job_uid="0123", reason="NodeLost", message="rank 1 of 4", time="2026-01-01T00:00:00Z"),
)
SERVICE_STATUS = InferenceServiceStatus(
    observed_generation=1,
    url="http://status.team.svc:8000",
    replicas=2,
    ready_replicas=1,
    selector="tuning.llmtuning.dev/service=status",
    adapters=[
        AdapterStatus(
            model_id="ft_a",
            tuning_job="faq",
            loaded_replicas=1,
            effective="True",
            reason="Effective",
            message="proven",
        )
    ],
    conditions=[CONDITION],
    model=SOURCE,
    progress=FetchProgress(percent=40, **FETCHED),
)
