"""One MLflow run through MlflowClient, which has no state of its own (no active run, no global URI).

Imported by the sender only; MLflow itself is imported when the first attempt is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_tuning.models.layout import ADAPTER_CONFIG, CARD, CHAT_TEMPLATE, EVALUATION, LOSS_CURVE, MANIFEST, METRICS
from llm_tuning.models.metrics_file import metric_names
from llm_tuning.tracking.outbox import SenderState
from llm_tuning.tracking.stores import Store, store_lock

RUN_TOKEN_TAG = "llm_tuning.run_token"
"""Found again by this tag, a run whose creation timed out is not made twice."""
ADAPTER_PATH_TAG = "llm_tuning.adapter_path"
PARAMS_IN_BATCH = 100
DIGEST_CHARACTERS = 36
"""MLflow keeps no longer digest; the whole one is in the tags."""
UPLOADED = (
    MANIFEST,
    CARD,
    LOSS_CURVE,
    ADAPTER_CONFIG,
    EVALUATION,
    METRICS,
    CHAT_TEMPLATE,
)
"""The files that become artifacts, the most important first. Not the weights: their place is the adapter's directory,
its path is a tag. Not parity.json: it holds rows of the data set, which a shared server need not see."""
UPLOAD_LIMIT_BYTES = 50 * 1024 * 1024


@dataclass(frozen=True)
class Job:
    """What is to be kept of a run."""

    store: Store
    experiment: str
    run_name: str
    run_token: str
    start_time_ms: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    dataset: Mapping[str, str]

    @property
    def key(self) -> str:
        """Identifies the place of the runs, without credentials."""
        return f"{self.store.shown} {self.experiment}"

    @classmethod
    def read(cls, path: Path, store: Store) -> Job:
        """Read the job that the run wrote for its sender."""
        return cls(store=store, **json.loads(path.read_text()))


class MlflowRun:
    """An open run. Every method is safe to repeat after a failure; each raises what MLflow raises."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.run_id = run_id

    @classmethod
    def open(cls, job: Job, state: SenderState) -> tuple[MlflowRun, SenderState]:
        """Resume the run of `state`, find the one that was made unseen, or make it; log parameters and data set."""
        from mlflow.tracking import MlflowClient

        with store_lock(job.store):
            client = MlflowClient(tracking_uri=job.store.uri)
            experiment_id = _experiment(client, job)
        run_id = _living_run(client, state.run_id) or _find_run(client, experiment_id, job)
        if run_id is None:
            tags = {**job.tags, RUN_TOKEN_TAG: job.run_token, "mlflow.source.name": "tune-llm"}
            created = client.create_run(experiment_id, start_time=job.start_time_ms, tags=tags, run_name=job.run_name)
            run_id = created.info.run_id
        else:
            client.update_run(run_id, status="RUNNING")
        if run_id != state.run_id:
            state = replace(state, run_id=run_id, described=False, sent={})
        if not state.described:
            _describe(client, run_id, job)
        return cls(client, run_id), replace(state, described=True)

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Send lines of metrics.jsonl in one batch (at most 1,000 values). A repeated batch leaves no second points."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key=name, value=line[name], timestamp=round(line["time"] * 1000), step=line["step"])
            for line in lines
            for name in metric_names(line)
        ]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self, status: str, end_time_ms: int) -> None:
        """Set the status: FINISHED, KILLED or FAILED."""
        self._client.set_terminated(self.run_id, status=status, end_time=end_time_ms)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def upload(self, adapter: Path) -> None:
        """Log the adapter's path, and its small files as artifacts."""
        self._client.set_tag(self.run_id, ADAPTER_PATH_TAG, str(adapter))
        for name in UPLOADED:
            path = adapter / name
            if path.is_file() and path.stat().st_size <= UPLOAD_LIMIT_BYTES:
                self._client.log_artifact(self.run_id, str(path))


def _experiment(client: Any, job: Job) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(job.experiment)
    if found is None:
        try:
            return str(client.create_experiment(job.experiment, artifact_location=job.store.artifact_location))
        except MlflowException:  # another run was first
            found = client.get_experiment_by_name(job.experiment)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise LookupError(f"experiment {job.experiment!r} is deleted there; restore it or choose another name")
    return str(found.experiment_id)


def _living_run(client: Any, run_id: str | None) -> str | None:
    """Return `run_id` if that run is still there and not deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run_id if run.info.lifecycle_stage == "active" else None


def _find_run(client: Any, experiment_id: str, job: Job) -> str | None:
    found = client.search_runs([experiment_id], f"tags.`{RUN_TOKEN_TAG}` = '{job.run_token}'", max_results=1)
    return found[0].info.run_id if found else None


def _describe(client: Any, run_id: str, job: Job) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param

    for chunk in _chunks(sorted(job.params.items()), PARAMS_IN_BATCH):
        client.log_batch(run_id, params=[Param(name, value) for name, value in chunk])
    if job.dataset:
        dataset = Dataset(
            name=job.dataset["name"],
            digest=job.dataset["hash"].removeprefix("sha256:")[:DIGEST_CHARACTERS],
            source_type="local",
            source=json.dumps({"uri": job.dataset["path"]}),
            profile=job.dataset["profile"],
        )
        tags = [InputTag("mlflow.data.context", "training")]
        client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset, tags=tags)])


def _chunks(items: list[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
