"""What a data check finds out about the base with the rows at hand: whether a server has them as they are trained."""

from __future__ import annotations

from pathlib import Path

from llm_tuning.data.check import BaseCheck
from llm_tuning.data.id_sample import IdSample
from llm_tuning.data.report import Report
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.models.base import read_config
from llm_tuning.models.rope import length_dependent_ropes, trained_beyond
from llm_tuning.run.served_ids import ids_as_served


def served_as_trained(folder: Path, *, cache: Path | None = None, apart: bool = True) -> BaseCheck:
    """Return the check of the base in `folder`: token ids (see `ids_as_served`), and rows too long for its rope."""
    compare_ids = ids_as_served(folder, cache=cache, apart=apart)

    def check(report: Report, tokenizer: RowTokenizer, sample: IdSample) -> None:
        if (warning := _rows_beyond_the_rope(folder, report)) is not None:
            report.warnings.append(warning)
        if compare_ids is not None:
            compare_ids(report, tokenizer, sample)

    return check


def _rows_beyond_the_rope(folder: Path, report: Report) -> str | None:
    tokens = report.tokens
    if tokens is None or tokens.lengths is None:
        return None
    try:
        config = read_config(folder)
    except (OSError, ValueError):
        return None  # validate takes a folder of a tokenizer alone
    longest = min(tokens.lengths.max, tokens.max_length)
    return trained_beyond(length_dependent_ropes(config).values(), longest) if isinstance(config, dict) else None
