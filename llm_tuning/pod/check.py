"""`check`: everything about a run that can be found out without torch, before a GPU is asked for."""

from __future__ import annotations

import logging

from llm_tuning.core.text import counted
from llm_tuning.data.report import Report
from llm_tuning.pod.contract import CheckResult, PodReason
from llm_tuning.pod.job import PodJob
from llm_tuning.pod.wording import SPEC_WORDS

log = logging.getLogger(__name__)


def run(job: PodJob) -> CheckResult:
    """Check the run of `job`; raises InputError with every problem, or TryAgain."""
    from llm_tuning.run.tune import check_run

    config = job.config()
    job.make_models_folder()
    report = check_run(config, job.options(), words=SPEC_WORDS)
    log.info("%s", report.summary())
    return CheckResult(ok=True, reason=PodReason.DATASET_VALID, message=_message(report))


def _message(report: Report) -> str:
    """Put the report into a condition's message: rows, refusals by reason with first row numbers, lengths, warnings."""
    parts = [f"{report.kept:,} of {counted(report.rows)} {'is' if report.kept == 1 else 'are'} kept"]
    if report.refusals:
        reasons = ", ".join(f"{refused.reason} in {refused}" for refused in report.refusals)
        parts.append(f"{report.refused:,} refused ({reasons})")
    if report.pairs is not None and report.pairs.from_ratings:
        parts.append(f"they make {counted(report.pairs.count, 'pair')}")
    tokens = report.tokens
    if tokens is not None and tokens.lengths is not None:
        lengths = tokens.lengths
        parts.append(f"tokens a row: p50 {lengths.p50:,}, p95 {lengths.p95:,}, max {lengths.max:,}")
        if tokens.tokens_lost:
            share = tokens.tokens_lost / lengths.total
            parts.append(f"maxLength {tokens.max_length:,} cuts {share:.1%} of the tokens off")
    warnings = [f"Warning: {warning}" for warning in report.warnings]
    held_out = report.evaluation
    if held_out is not None:
        are = "is" if held_out.evaluated == 1 else "are"
        parts.append(f"evaluation: {held_out.evaluated:,} of {counted(held_out.rows)} {are} scored")
        warnings += [f"Warning: evaluation: {warning}" for warning in held_out.warnings]
    return ". ".join(["; ".join(parts), *warnings])
