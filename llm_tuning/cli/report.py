"""`tune-llm report MODEL_ID`: the result of a finished run, or how far an unfinished one is."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_tuning.cli.tables import print_columns, score_titles
from llm_tuning.core.text import counted
from llm_tuning.errors import EXIT_OK, EXIT_TRY_AGAIN, InputError, TryAgain
from llm_tuning.models.held_out_scores import calls_note
from llm_tuning.models.layout import CARD
from llm_tuning.models.manifest import Manifest, hardware_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("model_id", metavar="MODEL_ID", help="which run")
    parser.add_argument("--output_dir", default="models", metavar="FOLDER", help="the models (default: models)")
    parser.add_argument("--json", action="store_true", help="print the whole manifest as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the report. Raises InputError for an unknown model_id and TryAgain for an unfinished run.

    With `--json` an unfinished run is printed, too, and the exit code is 75.
    """
    from llm_tuning.models.registry import Registry

    models = Path(args.output_dir)
    registry = Registry(models)
    registry.heal()
    if registry.find(args.model_id) is None:
        progress = progress_of(models, args.model_id)
        if progress is None:
            raise registry.unknown(args.model_id)
        if not args.json:
            raise TryAgain("Unfinished", unfinished_message(progress))
        print(json.dumps(progress, indent=2))
        return EXIT_TRY_AGAIN
    print_result(models, args.model_id, as_json=args.json)
    return EXIT_OK


def print_result(models: Path, model_id: str, *, as_json: bool = False) -> None:
    """Print the result of a finished run; raises InputError if `model_id` is none."""
    from llm_tuning.models.registry import Registry

    manifest = Registry(models).require(model_id)
    if as_json:
        result = {"finished": True, "path": str(models / model_id), **manifest.model_dump(mode="json")}
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    print_columns([[name, text] for name, text in _summary(models, manifest) if text])
    print()
    print_columns(_evaluation(manifest.metrics))


def _summary(models: Path, manifest: Manifest) -> list[tuple[str, str]]:
    base, start, mlflow = manifest.base, manifest.start_adapter, manifest.mlflow
    card = models / manifest.model_id / CARD
    return [
        ("model_id", manifest.model_id),
        ("adapter", str(models / manifest.model_id)),
        ("card", str(card) if card.is_file() else ""),
        ("mode", manifest.mode),
        ("base", f"{base.path} (weights {base.weight_hash[:12]})" + (", in 4 bits" if manifest.on_four_bits else "")),
        ("start adapter", f"{start.model_id} (weights {start.weight_hash[:12]})" if start else ""),
        ("created", manifest.created_at),
        ("training", _training(manifest)),
        ("hardware", hardware_line(manifest.hardware) if manifest.hardware else ""),
        ("stopped early", manifest.training.stopped_early or "" if manifest.training else ""),
        *_data(manifest),
        ("tool calls", calls_note(manifest.metrics)),
        ("warning", "; ".join(map(str, manifest.metrics.get("warnings") or ()))),
        ("mlflow", f"run {mlflow.run_id} of {mlflow.experiment} in {mlflow.uri}" if mlflow else _not_tracked(manifest)),
    ]


def _training(manifest: Manifest) -> str:
    training = manifest.training
    if training is None:
        return ""
    devices = f" on {', '.join(manifest.devices)}" if manifest.devices else ""
    return (
        f"{training.steps:,} steps, {training.epochs:g} epochs, {training.tokens:,} tokens "
        f"in {training.seconds:,.0f} s{devices}"
    )


def _not_tracked(manifest: Manifest) -> str:
    """Say why no run is known; a store that was locked may have got it after the manifest was written."""
    if manifest.mlflow_fault is None:
        return "not tracked"
    return f"not known when the adapter was published ({manifest.mlflow_fault}); a run of its name may have come later"


def _data(manifest: Manifest) -> list[tuple[str, str]]:
    """List the data check of the run as it was printed then; only its counts if another version wrote it otherwise."""
    from pydantic import ValidationError

    from llm_tuning.data.report import Report, summary_lines

    dataset = manifest.dataset
    if dataset is None:
        return []
    try:
        report = Report.model_validate((dataset.model_extra or {})["report"])
    except (KeyError, ValidationError):
        counts = f"{counted(dataset.rows)} read, {dataset.kept:,} kept, {dataset.refused:,} refused"
        return [("data", f"{dataset.path}: {counts} (hash {dataset.hash[:12]})")]
    return [(label.lower(), text) for label, text in summary_lines(report)]


def _evaluation(metrics: dict[str, Any]) -> list[list[str]]:
    """Build the held-out table: one column for each of base, start policy and tuned that was scored."""
    columns = [name for name in ("base", "start", "tuned") if metrics.get(name)]
    if not columns:
        reason = ": ".join(str(metrics[key]) for key in ("reason", "message") if metrics.get(key))
        return [["held out", f"no rows{f' ({reason})' if reason else ''}: nothing was compared"]]
    prompts = metrics.get("held_out_prompts")
    of = f" of {prompts} {'prompt' if prompts == 1 else 'prompts'}" if prompts else ""
    left_out = metrics.get("left_out_rows")
    less = f", without {left_out:,} whose prompt a training row has" if left_out else ""
    lines = [[f"held out ({metrics.get('held_out_rows', '?')} rows{of}{less})", *columns]]
    for key, name in score_titles().items():
        values = [metrics[column].get(key) for column in columns]
        if any(value is not None for value in values):
            lines.append([name, *("-" if value is None else f"{value:.4f}" for value in values)])
    return lines


def progress_of(models: Path, model_id: str) -> dict[str, Any] | None:
    """Read how far the unfinished run `model_id` is, or None where none was started."""
    from llm_tuning.models.layout import CHECKPOINTS, METRICS, RUN_SPEC, WORK_FOLDER
    from llm_tuning.models.metrics_file import summarise
    from llm_tuning.run.checkpoints import latest_checkpoint
    from llm_tuning.run.spec import read_run_spec

    work = models / WORK_FOLDER / model_id
    spec = read_run_spec(work)
    if spec is None:
        return None
    metrics, checkpoint = work / METRICS, latest_checkpoint(work / CHECKPOINTS)
    done, training = summarise(metrics), spec.config.training
    alive = metrics if metrics.exists() else work / RUN_SPEC
    return {
        "model_id": model_id,
        "finished": False,
        "step": done.steps,
        "epoch": done.epochs,
        "epochs": training.epochs,
        "max_steps": training.max_steps,
        "checkpoint_step": checkpoint[0] if checkpoint else None,
        "seconds_since_last_sign": round(max(0.0, time.time() - alive.stat().st_mtime), 1),
    }


def unfinished_runs(models: Path) -> list[dict[str, Any]]:
    """Return how far each run is that has not published its model, by `progress_of`; without those that are damaged."""
    from llm_tuning.models.layout import WORK_FOLDER

    folder, found = models / WORK_FOLDER, []
    for work in sorted(folder.iterdir()) if folder.is_dir() else ():
        with suppress(InputError, OSError):  # `report` says what is wrong; one that ends meanwhile is none
            found.append(progress_of(models, work.name))
    return [progress for progress in found if progress is not None]


def unfinished_message(progress: dict[str, Any]) -> str:
    """Build the sentence about an unfinished run from what `progress_of` returns."""
    of = f"step {progress['step']}"
    of += (
        f" of {progress['max_steps']}"
        if progress["max_steps"]
        else f", epoch {progress['epoch']:g} of {progress['epochs']}"
    )
    checkpoint = progress["checkpoint_step"]
    return (
        f"{progress['model_id']} is not finished: {of}, "
        f"{'no checkpoint yet' if checkpoint is None else f'last checkpoint at step {checkpoint}'}, "
        f"last sign {progress['seconds_since_last_sign']:,.0f} s ago; the same command with the same model_id resumes"
    )
