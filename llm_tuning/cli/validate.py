"""`tune-llm validate`: the data check alone, without loading a model or importing torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

from llm_tuning.api import RunOptions, TrainingSpec, TuningConfig
from llm_tuning.api.flags import FLAG_WORDS, Flag, add_flags, add_switch_with_number, config_flags, read_pairs
from llm_tuning.api.tuning import DatasetSpec
from llm_tuning.data.rows import RowForm
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, InputError, Problem
from llm_tuning.models.not_a_base import no_folder_problem, other_kind
from llm_tuning.modes import MODES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    mode, max_length = TuningConfig.model_fields["mode"], TrainingSpec.model_fields["max_length"]
    parser.add_argument(
        "--dataset_path", required=True, metavar="PATH", help=DatasetSpec.model_fields["path"].description
    )
    parser.add_argument("--llm_path", metavar="FOLDER", help="base model: its tokenizer and chat template are used")
    sources = RunOptions.model_fields["sources_dir"]
    parser.add_argument("--sources_dir", default=sources.default, metavar="FOLDER", help=sources.description)
    parser.add_argument("--tuning_mode", choices=list(MODES), default=mode.default, help=mode.description)
    parser.add_argument("--max_length", type=int, default=max_length.default, metavar="N", help=max_length.description)
    helps = {flag.name: flag.help for flag in config_flags()}
    parser.add_argument("--eval_dataset_path", metavar="FILE", help=helps["eval_dataset_path"])
    parser.add_argument("--columns", metavar="FIELD=COLUMN,...", help=helps["columns"])
    learn = TrainingSpec.model_fields["learn"]
    parser.add_argument("--learn", choices=get_args(learn.annotation), default=learn.default, help=learn.description)
    reasoning = TrainingSpec.model_fields["learn_reasoning"]
    parser.add_argument(
        "--learn_reasoning",
        action=argparse.BooleanOptionalAction,
        default=reasoning.default,
        help=reasoning.description,
    )
    add_flags(parser, _row_flags())
    parser.add_argument("--skip_invalid_rows", action="store_true", help="accept the file without its refused rows")
    shown = "show one row as the model sees it: the first usable one, or the one with this number"
    add_switch_with_number(parser, "show_sample", shown, default=False)
    parser.add_argument("--json", action="store_true", help="print the report as JSON, also when the file is refused")


def _row_flags() -> list[Flag]:
    """List the flags of the settings that decide how the rows of a mode are read."""
    paths = {(mode.name, name) for mode in MODES.values() for name in mode.row_settings}
    return [flag for flag in config_flags() if flag.path in paths]


def _form(args: argparse.Namespace) -> RowForm:
    """Return the form of the rows under the given settings; raises InputError for those of another mode."""
    mode = MODES[args.tuning_mode]
    given = [flag for flag in _row_flags() if hasattr(args, flag.name)]
    for flag in given:
        if flag.path[0] != mode.name:
            fix = f"use --tuning_mode {flag.path[0]} or remove it"
            raise InputError(Problem(f"--{flag.name}", f"is set but mode is not {flag.path[0]}", fix))
    if mode.rows_by_settings is None or mode.settings is None:
        return mode.rows
    values = {flag.path[1]: getattr(args, flag.name) for flag in given}
    return mode.rows_by_settings(mode.settings.parse(values, where=mode.name))


def _bring(args: argparse.Namespace) -> None:
    """Put paths of this disk in the place of URIs and hub names; they are fetched where they are not here."""
    from llm_tuning.progress.fetching import fetch_shown
    from llm_tuning.sources.given import is_offline, local_path
    from llm_tuning.sources.uri import Kind

    for flag, kind in (("llm_path", Kind.MODEL), ("dataset_path", Kind.DATASET), ("eval_dataset_path", Kind.DATASET)):
        given = getattr(args, flag)
        if given is not None:
            with fetch_shown() as watch:
                root, offline = Path(args.sources_dir), is_offline(os.environ)
                setattr(args, flag, local_path(given, kind, root, watch=watch, offline=offline))


def run(args: argparse.Namespace) -> int:
    """Print the report and return the exit code; raises InputError if the data set is refused (not with --json)."""
    if not args.json:
        return _run(args)
    try:
        return _run(args)
    except InputError as error:  # a bad flag or base: there is no report, but machines still get JSON
        problems = [{"where": p.where, "rule": p.rule, "fix": p.fix} for p in map(_in_flags, error.problems)]
        print(json.dumps({"ok": False, "path": args.dataset_path, "problems": problems}, indent=2))
        return EXIT_INPUT


def _run(args: argparse.Namespace) -> int:
    _bring(args)
    from llm_tuning.data.check import DatasetRefused, examine_dataset
    from llm_tuning.data.report import render_report
    from llm_tuning.data.sample import render_sample, sample_row
    from llm_tuning.models.trainable import training_problems
    from llm_tuning.run.base_checks import served_as_trained

    TrainingSpec.parse({"max_length": args.max_length}, where="training")
    RunOptions.parse({"show_sample": args.show_sample})
    columns = read_pairs(args.columns, "columns") if args.columns is not None else None
    held_out = args.eval_dataset_path
    given = {"path": args.dataset_path, "evaluation": held_out, "columns": columns}
    DatasetSpec.parse(given, where="dataset")
    form = _form(args)
    base = Path(args.llm_path) if args.llm_path is not None else None
    other = _other_than_base(args.llm_path) if args.llm_path is not None else None
    base = base if other is None else None
    report = examine_dataset(
        args.dataset_path,
        form=form,
        tokenizer_dir=base,
        max_length=args.max_length,
        skip_invalid_rows=args.skip_invalid_rows,
        columns=columns,
        learn=args.learn,
        learn_reasoning=args.learn_reasoning,
        evaluation=held_out,
        check_base=served_as_trained(base) if base is not None else None,
        words=FLAG_WORDS,
    )
    if other is not None:
        report.refuse(replace(other.in_words(FLAG_WORDS), field="model.path"))
    elif base is not None and not (base / "config.json").exists():
        report.warnings.append(f"{base} has no config.json: it is no base model, and a run would refuse it")
    elif base is not None:
        for problem in training_problems(base):
            report.refuse(replace(problem.in_words(FLAG_WORDS), field="model.path"))
    on_terminal = sys.stdout.isatty()
    print(report.model_dump_json(indent=2) if args.json else render_report(report, color=on_terminal))
    if report.kept and (args.show_sample or (on_terminal and not args.json)):
        where = sys.stderr if args.json else sys.stdout
        reading = {"form": form, "tokenizer_dir": base, "columns": columns, "learn": args.learn}
        reading |= {"learn_reasoning": args.learn_reasoning, "max_length": args.max_length}
        sample = render_sample(args.dataset_path, **reading, row=sample_row(args.show_sample), color=where.isatty())
        print(sample, file=where)
    if report.ok:
        return EXIT_OK
    if args.json:
        return EXIT_INPUT
    raise DatasetRefused(report)


def _other_than_base(path: str) -> Problem | None:
    """Return the problem of what is neither a base nor the folder of a tokenizer, which is enough to check rows."""
    where = f"model {path}"
    if not Path(path).is_dir():
        return no_folder_problem(path, where)
    return other_kind(Path(path), where, adapter_as="{field:model.adapter.model_id}")


def _in_flags(problem: Problem) -> Problem:
    return problem.in_words(FLAG_WORDS)
