"""`kubectl tuning report NAME`: what the training has reached on the held-out rows, and where the adapter is."""

from __future__ import annotations

import argparse
from datetime import datetime

from llm_tuning.api.tuning_job import Evaluation
from llm_tuning.cli.tables import print_columns, print_table, score_titles
from llm_tuning.client import Job
from llm_tuning.client.explain import explain_job
from llm_tuning.errors import EXIT_OK, EXIT_TRY_AGAIN
from llm_tuning.kubectl.cluster import client_of
from llm_tuning.progress.bar import clock


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("name", metavar="NAME", help="the TuningJob")


def run(args: argparse.Namespace) -> int:
    """Print the report; raises TuningFailed where there is no adapter, and returns 75 where it has not finished."""
    with client_of(args) as client:
        job = client.get(args.name.rpartition("/")[2])
    job.raise_if_failed()
    if not job.is_finished:
        print(explain_job(job))
        return EXIT_TRY_AGAIN
    print_columns([[name, text] for name, text in _summary(job) if text])
    print()
    evaluation = job.status.evaluation if job.status is not None else None
    if evaluation is None or evaluation.tuned_loss is None:
        print("No rows were held out, so nothing was compared.")
    else:
        print_table(*_evaluation(evaluation))
    return EXIT_OK


def _summary(job: Job) -> list[tuple[str, str]]:
    status, spec = job.status, job.spec
    assert status is not None
    began, ended = (datetime.fromisoformat(t) if t else None for t in (status.start_time, status.completion_time))
    return [
        ("tuningjob", job.name),
        ("mode", spec.mode),
        ("base", spec.model.path or spec.model.uri or ""),
        ("start adapter", status.start_adapter_model_id or ""),
        ("model_id", status.model_id or ""),
        ("adapter", f"{status.adapter_path} on the claim {spec.volume.claim_name}"),
        ("steps", f"{status.progress.step:,}" if status.progress is not None else ""),
        ("took", clock((ended - began).total_seconds()) if began and ended else ""),
        ("mlflow run", f"{status.mlflow_run_id}{f' in {spec.tracking.uri}' if spec.tracking.uri else ''}"),
    ]


def _evaluation(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Build header and rows: one column for each of base, start adapter and tuned that was scored."""
    titles = score_titles()
    scores = {
        name: {key: getattr(found, f"{name}_{key}", None) for key in titles} for name in ("base", "start", "tuned")
    }
    columns = [name for name, values in scores.items() if any(value is not None for value in values.values())]
    rows = [
        [text, *("-" if scores[name][key] is None else f"{scores[name][key]:.4f}" for name in columns)]
        for key, text in titles.items()
        if any(scores[name][key] is not None for name in columns)
    ]
    return [f"held out ({found.held_out_rows or '?'} rows)", *columns], rows
