"""The rows of a run: checked, and tokenised into its work folder, in one read of the file that also makes its hash."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llm_tuning.api import TuningConfig
from llm_tuning.errors import PLAIN, Words
from llm_tuning.models.layout import SERVED_IDS
from llm_tuning.modes import MODES
from llm_tuning.run.checks import DATASET, EVALUATION, of_field

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from llm_tuning.data.check import BaseCheck
    from llm_tuning.data.report import Report

log = logging.getLogger(__name__)


def check_rows(
    config: TuningConfig, *, with_tokens: bool = True, cache: Path | None = None, words: Words = PLAIN
) -> Report:
    """Check the rows and write nothing; raises InputError. Without tokens no base is needed.

    `cache` is the folder that remembers which token ids are those of a server (`run.served_ids`).
    """
    check = _check_of_base(config, cache, apart=True) if with_tokens else None
    return _read(config, out=None, encoder=None, check_base=check, with_tokens=with_tokens, words=words)


def tokenise_rows(config: TuningConfig, out: Path, *, cache: Path, apart: bool, show_sample: bool | int) -> Report:
    """Check the rows and write them tokenised to `out`; raises InputError, and leaves nothing in `out` then.

    `apart`: this process never imports torch.
    """
    from llm_tuning.data.sample import render_sample, sample_row

    base = Path(config.model.path)
    encoder = None if (base / "tokenizer.json").exists() else _slow_tokenizer(base)
    check = _check_of_base(config, cache, apart=apart)
    report = _read(config, out=out, encoder=encoder, check_base=check)
    log.info("%s", report.summary())
    color = sys.stderr.isatty()
    if show_sample or color:
        form = MODES[config.mode].form_of(config)
        sample = render_sample(
            config.dataset.path,
            form=form,
            tokenizer_dir=base,
            columns=config.dataset.columns,
            learn=config.training.learn,
            learn_reasoning=config.training.learn_reasoning,
            encoder=encoder,
            max_length=config.training.max_length,
            row=sample_row(show_sample),
            color=color,
        )
        sys.stderr.write(sample)  # not a log line: logs never hold text of the data set
    return report


class RowHashes(NamedTuple):
    """What the rows of a run are, by the bytes of their files: sha256 (hex)."""

    training: str
    evaluation: str | None = None
    """Of the rows of `dataset.evaluation`; None without them."""

    @classmethod
    def of(cls, report: Report) -> RowHashes:
        """Take the hashes from the report of a check that has passed."""
        assert report.data_hash is not None
        return cls(report.data_hash, report.evaluation.data_hash if report.evaluation is not None else None)


def hash_rows(config: TuningConfig) -> RowHashes:
    """Hash the files, for a run whose rows are tokenised already; raises InputError, of the field of the file."""
    from llm_tuning.data.reading import data_hash

    training = of_field(DATASET, lambda: data_hash(Path(config.dataset.path)))
    held_out = evaluation_file(config)
    return RowHashes(training, None if held_out is None else of_field(EVALUATION, lambda: data_hash(held_out)))


def evaluation_file(config: TuningConfig) -> Path | None:
    """Return where the rows to evaluate on are; None where a share of the data set is held out."""
    from llm_tuning.data.reading import evaluation_path

    given = config.dataset.evaluation
    return None if given is None else evaluation_path(config.dataset.path, given)


def _read(
    config: TuningConfig,
    *,
    out: Path | None,
    encoder: Tokenizer | None,
    check_base: BaseCheck | None,
    with_tokens: bool = True,
    words: Words = PLAIN,
) -> Report:
    from llm_tuning.data.check import check_dataset

    return check_dataset(
        config.dataset.path,
        form=MODES[config.mode].form_of(config),
        tokenizer_dir=Path(config.model.path) if with_tokens else None,
        max_length=config.training.max_length,
        skip_invalid_rows=config.dataset.skip_invalid_rows,
        columns=config.dataset.columns,
        learn=config.training.learn,
        learn_reasoning=config.training.learn_reasoning,
        evaluation=config.dataset.evaluation,
        out=out,
        encoder=encoder,
        check_base=check_base,
        words=words,
    )


def _check_of_base(config: TuningConfig, cache: Path | None, *, apart: bool) -> BaseCheck:
    from llm_tuning.run.base_checks import served_as_trained

    return served_as_trained(Path(config.model.path), cache=cache / SERVED_IDS if cache else None, apart=apart)


def _slow_tokenizer(base: Path) -> Tokenizer:
    """Load the tokenizer of a base without tokenizer.json, made by transformers (which imports torch)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend
