"""`kubectl tuning plan -f FILE`: does it fit, and how long may it take? It needs no cluster, but base and data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_tuning.api import TuningJob, tuning_job
from llm_tuning.api.yaml import load_yaml_objects
from llm_tuning.cli.tables import print_columns, print_table
from llm_tuning.client.specs import KINDS
from llm_tuning.core.suggestions import closest, did_you_mean
from llm_tuning.data.files.locate import is_there
from llm_tuning.errors import EXIT_OK, InputError, Problem
from llm_tuning.planning import Plan, Verdict, make_plan
from llm_tuning.progress.bar import clock
from llm_tuning.run.memory import GIB, total
from llm_tuning.run.setting import Setting


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("-f", "--filename", required=True, metavar="FILE", help="YAML file with TuningJobs")
    parser.add_argument(
        "--root", default=".", metavar="FOLDER", help="where the claim's files are on this machine (default: here)"
    )
    parser.add_argument("--base", metavar="FOLDER", help="the base model of all, where it is not below --root")
    parser.add_argument("--dataset", metavar="FILE", help="the data set of all, where it is not below --root")


def run(args: argparse.Namespace) -> int:
    """Print a plan for each TuningJob; raises InputError where it would be refused, or where the base is not here."""
    path = None if args.filename == "-" else Path(args.filename)
    jobs = _jobs(load_yaml_objects(path), args.filename)
    problems = [*_not_for_all(args, jobs), *(problem for job in jobs for problem in _missing(args, job))]
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    for number, job in enumerate(jobs):
        plan = make_plan(
            job.spec, base=_base(args, job), dataset=_dataset(args, job), evaluation=_evaluation(args, job)
        )
        print("\n" * bool(number), end="")
        show(str(job.metadata.get("name") or "the TuningJob"), plan)
    return EXIT_OK


def _jobs(objects: Sequence[dict[str, Any]], file: str) -> list[TuningJob]:
    for kind in {str(values.get("kind")) for values in objects} - KINDS.keys():
        if closest(kind, KINDS) == tuning_job.KIND:
            raise InputError(Problem(file, f"holds a {kind}", did_you_mean(kind, KINDS)))
    jobs = [values for values in objects if values.get("kind") == tuning_job.KIND]
    if not jobs:
        flags = any("llm_path" in values for values in objects)
        fix = (
            "this is a file for `tune-llm --config`; docs/tuningjob.md has the same fields as an object"
            if flags
            else ""
        )
        raise InputError(Problem(file, f"holds no {tuning_job.KIND}", fix or "docs/tuningjob.md shows one"))
    return [TuningJob.parse({key: value for key, value in values.items() if key != "status"}) for values in jobs]


def _not_for_all(args: argparse.Namespace, jobs: Sequence[TuningJob]) -> list[Problem]:
    """Refuse a local base or data set for jobs whose own differ: all but one would be planned with the wrong one."""
    bases = {(job.spec.model.path, job.spec.model.uri) for job in jobs}
    datasets = {(job.spec.dataset.path, job.spec.dataset.config_map, job.spec.dataset.uri) for job in jobs}
    return [
        Problem(
            flag,
            f"is one for all TuningJobs of {args.filename}, and theirs differ ({field})",
            "give the folder of the claim's files with --root, or plan each TuningJob from a file of its own",
        )
        for flag, given, field, different in (
            ("--base", args.base, "spec.model", bases),
            ("--dataset", args.dataset, "spec.dataset", datasets),
        )
        if given and len(different) > 1
    ]


def _missing(args: argparse.Namespace, job: TuningJob) -> list[Problem]:
    problems = []
    base, dataset = _base(args, job), _dataset(args, job)
    if job.spec.model.path is None and not args.base:
        rule = f"{job.spec.model.uri} is not fetched for a plan"
        problems.append(Problem("spec.model.uri", rule, "give a local copy of it with --base"))
    elif not base.is_dir():
        rule = f"{base} is a file, and a folder is needed" if base.exists() else f"there is no {base} on this machine"
        fix = "give a local copy with --base, or the folder of the claim's files with --root"
        problems.append(Problem("--base" if args.base else "spec.model.path", rule, fix))
    if dataset is not None and not is_there(dataset):
        rule = f"there is no {dataset} on this machine"
        problems.append(Problem("--dataset" if args.dataset else "spec.dataset.path", rule, "give a local copy of it"))
    return problems


def _base(args: argparse.Namespace, job: TuningJob) -> Path:
    return Path(args.base) if args.base else Path(args.root) / (job.spec.model.path or "")


def _dataset(args: argparse.Namespace, job: TuningJob) -> Path | None:
    if args.dataset:
        return Path(args.dataset)
    if job.spec.dataset.path is None:
        return None
    path = Path(args.root) / job.spec.dataset.path
    return path if is_there(path) else None


def _evaluation(args: argparse.Namespace, job: TuningJob) -> str | Path | None:
    given = job.spec.dataset.evaluation
    if given is None or given.startswith("#"):
        return given
    path = Path(args.root) / given
    return path if path.exists() else None


def show(name: str, plan: Plan) -> None:
    """Print a plan."""
    setting, steps = plan.setting, plan.steps
    device = _device(setting)
    facts = [["base", f"{plan.shape.path} ({plan.shape.parameters:,} parameters)"]]
    facts.append(["adapter", f"rank {setting.rank}, {plan.adapter_parameters:,} parameters"])
    if plan.rows is not None:
        rows = plan.rows
        facts.append(["rows", f"{rows.count:,}, {rows.tokens:,} tokens, longest {rows.longest:,}"])
    elif plan.report is None:
        facts.append(["rows", "the data set is not on this machine: no steps and no time (give it with --dataset)"])
    else:
        facts.append(["rows", f"{plan.report.examples:,}; the base has no tokenizer.json: no tokens and no time"])
    if steps is not None:
        of = f"{steps.rows_per_step} rows a step, {steps.epochs:.3g} epochs, {steps.held_out} rows held out"
        facts.append(["steps", f"{steps.total:,} ({of})"])
    print(f"{name}: {plan.device_gib:.1f} GiB on {device}")
    print_columns(facts, indent="  ")
    print()
    bill = [[part.name, f"{part.size / 2**30:.2f}", part.how] for part in plan.parts]
    bill.append(["sum", f"{total(plan.parts) / 2**30:.2f}", ""])
    if plan.evaluation:
        seen = f"the same without gradients and activations, in passes of {setting.scored:,} tokens"
        bill.append(["evaluation", f"{total(plan.evaluation) / 2**30:.2f}", seen])
    print_table(["memory", "GiB", "of what"], bill)
    if plan.verdicts:
        print()
        print_table(["GPU", "fits", "time", "why, or what would help"], [_line(plan, v) for v in plan.verdicts])
    print()
    enough = "enough" if plan.pod_fits else f"not enough: set resources.memory to {plan.host_gib * 1.1:.0f}Gi or more"
    each = f" in each of {setting.nodes} pods" if setting.nodes > 1 else ""
    print(f"pod memory{each}: {plan.host_gib:.1f} GiB needed, {plan.pod_gib:.1f} GiB given, {enough}")
    for note in plan.notes:
        print(f"note: {note}")


def _device(setting: Setting) -> str:
    """Say whose memory the bill is."""
    if not setting.cuda:
        return "the pod" if setting.nodes == 1 else f"each of {setting.nodes} pods"
    if setting.ranks == 1:
        return "one GPU"
    return "each of " + (f"{setting.nodes} nodes x " if setting.nodes > 1 else "") + f"{setting.processes} GPUs"


def _line(plan: Plan, verdict: Verdict) -> list[str]:
    gpu, ranks = verdict.gpu, plan.setting.ranks
    size = f"{gpu.gigabytes} GB ({gpu.card})"
    base = f" with the base {verdict.division.how}" if ranks > 1 else ""
    free = gpu.usable_gib - verdict.needed / GIB
    if verdict.fits:
        fits, tenth = ("tight", ", less than a tenth") if verdict.tight else ("yes", "")
        return [size, fits, _time(verdict.seconds), f"{free:.1f} GiB stay free{tenth}{base}"]
    over = f"{-free:.1f} GiB too much{base}"
    larger = any(v.fits or v.remedy for v in plan.verdicts if v.gpu.gigabytes > gpu.gigabytes)
    none = "a larger GPU" if larger else "a smaller base: 16 nodes of such GPUs do not hold it"
    return [size, "no", "", f"{over}; {f'would fit with {verdict.remedy}' if verdict.remedy else none}"]


def _time(seconds: tuple[float, float] | None) -> str:
    if seconds is None:
        return ""
    shortest, longest = seconds
    return "under a minute" if longest < 60 else f"{clock(shortest)} to {clock(longest)}"
