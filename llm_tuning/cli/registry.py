"""`tune-llm registry`: list, show, verify and rebuild the models of an output directory."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_tuning.api.flags import FLAG_WORDS
from llm_tuning.cli.report import unfinished_message, unfinished_runs
from llm_tuning.cli.tables import print_columns, print_table
from llm_tuning.errors import EXIT_OK, InputError

EXIT_PROBLEMS = 1
"""`verify` found something: not bad input of this command, so not 64."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the four actions and their flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|verify|rebuild")
    for name, (_, text) in ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text)
        if name == "show":
            action.add_argument("model_id", help="which model")
        if name == "verify":
            action.add_argument("model_id", nargs="?", help="which model (default: all)")
        action.add_argument("--output_dir", default="models", metavar="FOLDER", help="the models (default: models)")
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Do the action and print what came of it; returns 0, or 1 when `verify` found problems. Raises InputError."""
    return ACTIONS[args.action][0](args)


def _list(args: argparse.Namespace) -> int:
    models = Path(args.output_dir)
    entries = sorted(_registry(models).entries(), key=lambda entry: str(entry.get("created_at", "")), reverse=True)
    rows = [{**entry, **_from_manifest(models, entry)} for entry in entries]
    published = {entry["model_id"] for entry in entries}
    going = [progress for progress in unfinished_runs(models) if progress["model_id"] not in published]
    if args.json:
        _print_json({"models": rows, "unfinished": going})
        return EXIT_OK
    if rows:
        print_table(["MODEL_ID", "MODE", "BASE", "CREATED", "HELD-OUT LOSS"], [_row(row) for row in rows])
    else:
        print(f"no models in {models.resolve()}")
    for progress in going:
        print(unfinished_message(progress))
    return EXIT_OK


def _show(args: argparse.Namespace) -> int:
    models = Path(args.output_dir)
    registry = _registry(models)
    entry = registry.get(args.model_id)
    if entry is None:
        raise registry.unknown(args.model_id)
    manifest = _manifest(models, args.model_id)
    if args.json:
        _print_json({"entry": entry, "manifest": manifest})
        return EXIT_OK
    shown = {**entry, "path": str(models / args.model_id)} if manifest else dict(entry)
    for name in ("config_hash", "start_adapter", "dataset", "template_hash", "mlflow", "library_versions", "files"):
        if manifest and manifest.get(name):
            shown[name] = manifest[name]
    print_columns(_lines(shown))
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    registry = _registry(Path(args.output_dir))
    problems = registry.verify(args.model_id)
    if args.json:
        _print_json(
            {
                "problems": [
                    {"where": p.where, "rule": p.rule, "fix": p.fix}
                    for p in (problem.in_words(FLAG_WORDS) for problem in problems)
                ]
            }
        )
    elif problems:
        print("\n".join(map(str, problems)))
    else:
        print(f"{args.model_id or f'{len(registry.entries())} models'}: all as published")
    return EXIT_PROBLEMS if problems else EXIT_OK


def _rebuild(args: argparse.Namespace) -> int:
    result = _registry(Path(args.output_dir)).rebuild()
    if args.json:
        _print_json({"models": len(result.entries), "added": result.added, "removed": result.removed})
    else:
        print(f"{len(result.entries)} models, {len(result.added)} added, {len(result.removed)} removed")
        print_columns([["added", name] for name in result.added] + [["removed", name] for name in result.removed])
    return EXIT_PROBLEMS if result.unusable else EXIT_OK


ACTIONS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "list": (_list, "the models, newest first, and the runs that are not finished"),
    "show": (_show, "one model: its entry in registry.json and what its manifest adds"),
    "verify": (_verify, "compare files, bases and index with the manifests"),
    "rebuild": (_rebuild, "rewrite registry.json from the manifests; hand-made entries stay"),
}


def _registry(models: Path) -> Any:
    from llm_tuning.models.registry import Registry

    return Registry(models)


def _manifest(models: Path, model_id: str) -> dict[str, Any] | None:
    """Read the manifest as JSON, None where there is none to be read."""
    from llm_tuning.models.manifest import read_model

    try:
        manifest = read_model(models / model_id)
    except InputError:  # the registry has logged it
        return None
    return None if manifest is None else manifest.model_dump(mode="json")


def _from_manifest(models: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Read what the list shows and the index lacks: whether the model is there, and its held-out loss."""
    from llm_tuning.models.registry_entries import BASE, is_derived

    if entry.get("model_type") == BASE:
        return {}
    manifest = _manifest(models, entry["model_id"])
    if manifest is None:  # nothing is known of where a hand-made entry's model is
        return {"whole": False, "held_out_loss": None} if is_derived(entry) else {}
    scores = {name: (manifest["metrics"].get(name) or {}).get("loss") for name in ("base", "tuned")}
    loss = scores if scores["tuned"] is not None else None
    return {"whole": True, "base_name": manifest["base"]["name"], "held_out_loss": loss}


def _row(row: dict[str, Any]) -> list[str]:
    params, loss = row.get("fine_tuning_params"), row.get("held_out_loss")
    mode = params.get("tuning_mode") if isinstance(params, dict) else row.get("model_type")
    if row.get("whole") is False:
        shown = "not there"
    else:
        shown = f"{_number(loss['base'])} -> {_number(loss['tuned'])}" if loss else "-"
    base = row.get("base_name") or row.get("base_model_id")
    return [row["model_id"], _text(mode), _text(base), _text(row.get("created_at")), shown]


def _lines(values: dict[str, Any]) -> list[list[str]]:
    """List `values` as name and text, a group's members on lines of their own."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [[f"{name}.{inner}", _text(inner_value)] for inner, inner_value in value.items()]
        else:
            lines.append([name, _text(value)])
    return lines


def _text(value: object) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) and math.isfinite(value) else "-"


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
