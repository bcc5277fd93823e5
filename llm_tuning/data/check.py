"""Checks a data set from the first byte to the last before any model is loaded, and writes its tokenised rows.

Reads the file once, in bounded memory: read -> parse -> render and tokenise in batches -> count -> write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from llm_tuning.core.room import is_full, says_no_space, volume_full
from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.data.chat import TemplateForbidden
from llm_tuning.data.faults import Reason, RowFault
from llm_tuning.data.id_sample import IdSample
from llm_tuning.data.parser import RowParser
from llm_tuning.data.rated_rows import RatedRows
from llm_tuning.data.reading import DatasetFile, data_hash, evaluation_path
from llm_tuning.data.reasoning_tags import refuse_reasoning_tags
from llm_tuning.data.report import Report, describe, name_skipped
from llm_tuning.data.rows import Example, Learn, RowForm
from llm_tuning.data.sample import render_sample
from llm_tuning.data.splitting import PromptGroups
from llm_tuning.data.tally import Tally
from llm_tuning.data.token_rows import TokenRowsWriter
from llm_tuning.data.tokenised import TokenisedRow
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.data.verdict import judge, judge_evaluation
from llm_tuning.errors import PLAIN, InputError, Problem, Words

__all__ = ["DatasetRefused", "check_dataset", "data_hash", "examine_dataset", "render_sample"]

_BATCH_ROWS = 256
_BATCH_CHARACTERS = 1 << 18
"""A batch of encodings takes some hundred bytes a token."""


BaseCheck = Callable[[Report, RowTokenizer, IdSample], None]
"""Adds to a finished report what is wrong with the base for these rows (`run.base_checks`)."""


class DatasetRefused(InputError):  # noqa: N818 - the input is at fault, not the program
    """The data set is refused; `report` holds all that was found, in plain words."""

    def __init__(self, report: Report) -> None:
        self.report = report.in_words()
        super().__init__(report.input_problems())


def check_dataset(
    path: str | Path,
    *,
    form: RowForm,
    tokenizer_dir: Path | None,
    max_length: int,
    skip_invalid_rows: bool = False,
    columns: Mapping[str, str] | None = None,
    learn: Learn = "all",
    learn_reasoning: bool = True,
    evaluation: str | Path | None = None,
    out: Path | None = None,
    encoder: Tokenizer | None = None,
    check_base: BaseCheck | None = None,
    words: Words = PLAIN,
) -> Report:
    """Check a data set for a run; with `out` also write its TokenRows there.

    `tokenizer_dir` is the folder of the base; `encoder` (the backend of its AutoTokenizer) stands in for a missing
    tokenizer.json. `columns` maps fields to the file's names of them. The rows of `evaluation`, which may be a split of
    `path` (`#validation`), are held out: they are checked in the same way and follow the others in `out`. `check_base`
    sees the report and a choice of the rows. The report is in `words`. Raises DatasetRefused (an InputError) with all
    problems of both; then nothing is left in `out`.
    """
    report = _examine(
        path,
        form=form,
        tokenizer_dir=tokenizer_dir,
        max_length=max_length,
        skip_invalid_rows=skip_invalid_rows,
        columns=columns,
        learn=learn,
        learn_reasoning=learn_reasoning,
        evaluation=evaluation,
        out=out,
        encoder=encoder,
        check_base=check_base,
    )
    if not report.ok:
        raise DatasetRefused(report)
    return report.in_words(words)


def examine_dataset(
    path: str | Path,
    *,
    form: RowForm,
    tokenizer_dir: Path | None,
    max_length: int,
    skip_invalid_rows: bool = False,
    columns: Mapping[str, str] | None = None,
    learn: Learn = "all",
    learn_reasoning: bool = True,
    evaluation: str | Path | None = None,
    check_base: BaseCheck | None = None,
    words: Words = PLAIN,
) -> Report:
    """Check a data set without writing its TokenRows; one that does not pass is a report with `ok` False.

    The arguments are those of `check_dataset`. Raises InputError for a base that has no usable tokenizer or template.
    """
    report = _examine(
        path,
        form=form,
        tokenizer_dir=tokenizer_dir,
        max_length=max_length,
        skip_invalid_rows=skip_invalid_rows,
        columns=columns,
        learn=learn,
        learn_reasoning=learn_reasoning,
        evaluation=evaluation,
        check_base=check_base,
    )
    return report.in_words(words)


def _examine(
    path: str | Path,
    *,
    form: RowForm,
    tokenizer_dir: Path | None,
    max_length: int,
    skip_invalid_rows: bool,
    columns: Mapping[str, str] | None,
    learn: Learn,
    learn_reasoning: bool,
    evaluation: str | Path | None,
    out: Path | None = None,
    encoder: Tokenizer | None = None,
    check_base: BaseCheck | None = None,
) -> Report:
    """Build the report with its placeholders; raises InputError for an unusable base or an unwritable `out`."""
    tokenizer = _load_tokenizer(tokenizer_dir, encoder, learn, learn_reasoning=learn_reasoning)
    if out is not None and tokenizer is None:
        where = f"model {tokenizer_dir}"
        raise InputError(Problem(where, "has no tokenizer.json", "save its tokenizer with save_pretrained() first"))
    sample = IdSample() if check_base is not None and tokenizer is not None else None
    with _rows_writer(out) as writer:
        reader = _Reader(form, columns, tokenizer, writer, max_length)
        report, parser = reader.read(Path(path), sample)
        if evaluation is not None:
            if writer is not None:
                writer.begin_evaluation()
            report.evaluation, of_evaluation = reader.read(evaluation_path(path, evaluation))
            reader.name_skipped_files()
            judge_evaluation(report.evaluation, of_evaluation, tokenizer, skip_invalid_rows=skip_invalid_rows)
        judge(report, parser, tokenizer, tokenizer_dir=tokenizer_dir, skip_invalid_rows=skip_invalid_rows)
        if check_base is not None and tokenizer is not None and sample is not None:
            check_base(report, tokenizer, sample)
        if writer is not None and not report.ok:
            writer.discard()
        elif writer is not None:
            writer.close()
    return report


class _Reader:
    """Reads the files of a data set one after the other: the training rows, then those to evaluate on."""

    def __init__(
        self,
        form: RowForm,
        columns: Mapping[str, str] | None,
        tokenizer: RowTokenizer | None,
        writer: TokenRowsWriter | None,
        max_length: int,
    ) -> None:
        self._form, self._columns, self._max_length = form, columns, max_length
        self._tokenizer, self._writer = tokenizer, writer
        self._prompts = PromptGroups()
        self._found: list[tuple[Report, DatasetFile]] = []

    def read(self, path: Path, sample: IdSample | None = None) -> tuple[Report, RowParser]:
        """Read a file and count what is in it; a file that cannot be read is a problem of its report.

        Kept rows are offered to `sample`.
        """
        report = Report(path=str(path), mode=self._form.mode)
        parser = RowParser(self._form, columns=self._columns)
        tally = Tally(self._form, self._max_length, with_tokens=self._tokenizer is not None, prompts=self._prompts)
        rated = RatedRows(self._form.pairing, self._writer) if self._form.pairing is not None else None
        dataset: DatasetFile | None = None
        try:
            dataset = DatasetFile(path)
            describe(report, dataset)
            self._found.append((report, dataset))
            for batch in _batches(dataset, parser, tally):
                raise_if_stopped("while checking the dataset")
                self._take(batch, tally, rated, sample)
            if rated is not None and len(rated):
                tally.keep_pairs(rated)
            report.data_hash = dataset.sha256
        except TemplateForbidden:
            raise
        except InputError as error:
            for problem in error.problems:
                report.refuse(problem)
        finally:
            if rated is not None:
                rated.discard()
        tally.write(report)
        if dataset is not None:
            report.name_places(dataset.place)
        return report, parser

    def _take(self, batch: list[Example], tally: Tally, rated: RatedRows | None, sample: IdSample | None) -> None:
        rows: list[TokenisedRow | RowFault] | list[RowFault | None]
        tokenizer = self._tokenizer
        rows = tokenizer.tokenise(batch, max_length=self._max_length) if tokenizer else list(map(_fault, batch))
        for example, found in zip(batch, rows, strict=True):
            row = found if isinstance(found, RowFault) else _fault_of_pair(self._form, found) or found
            if isinstance(row, RowFault):
                tally.refuse(example.row_number, row)
                continue
            tally.keep(example, row)
            if sample is not None:
                sample.offer(example)
            if rated is not None and len(example.sequences) == 1:
                rated.add(example, row)
            elif self._writer is not None and row is not None:
                _write(self._writer, example, row)

    def name_skipped_files(self) -> None:
        """Take from the files that each report says are not read those that were read for another."""
        read = {str(file) for _, dataset in self._found for file in dataset.files}
        for report, dataset in self._found:
            name_skipped(report, [file for file in dataset.skipped if file not in read])


def _load_tokenizer(
    folder: Path | None, encoder: Tokenizer | None, learn: Learn, *, learn_reasoning: bool
) -> RowTokenizer | None:
    if folder is None:
        return None
    if not folder.is_dir():
        rule = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(Problem(f"model {folder}", rule, "give the folder of the base model"))
    return RowTokenizer.load(folder, encoder, learn=learn, learn_reasoning=learn_reasoning)


def _batches(dataset: DatasetFile, parser: RowParser, tally: Tally) -> Iterator[list[Example]]:
    batch: list[Example] = []
    characters = 0
    for number, row in dataset:
        tally.read += 1
        try:
            example = parser.parse(number, row)
        except RowFault as fault:
            tally.refuse(number, fault, line=dataset.line)
            continue
        if example is None:
            continue
        batch.append(example)
        characters += sum(conversation.characters for conversation in example.sequences)
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _fault(example: Example) -> RowFault | None:
    """Return what is wrong with the texts of a row for every base."""
    try:
        for conversation in example.sequences:
            refuse_reasoning_tags(conversation.messages or ())
    except RowFault as fault:
        return fault
    return None


def _fault_of_pair(form: RowForm, row: TokenisedRow | None) -> RowFault | None:
    """Return the fault of a pair whose sides are the same tokens, as a template or the maximum length makes them."""
    if not form.sides or row is None or len(row.sequences) != len(form.sides):
        return None
    one, other = row.sequences
    if not np.array_equal(one.input_ids, other.input_ids):
        return None
    names = " and ".join(f"`{name}`" for name in form.sides)
    if one.full_length > len(one.input_ids) or other.full_length > len(other.input_ids):
        rule = f"{names} are the same up to {{field:training.max_length}}"
        return RowFault(Reason.EQUAL_SIDES, rule, "raise it, or shorten the answers")
    rule = f"{names} are the same tokens: neither is better"
    return RowFault(Reason.EQUAL_SIDES, rule, "give two answers that differ, or remove the row")


def _write(writer: TokenRowsWriter, example: Example, row: TokenisedRow) -> None:
    authored = example.sequences[0]
    for number, sequence in enumerate(row.sequences):
        of_sequence: dict[str, Any] = {
            "messages": sequence.messages,
            "tools": sequence.tools,
            "text": sequence.text,
            "prompt_tokens": sequence.prompt_tokens,
        }
        if number == 0:
            writer.append(
                sequence.input_ids,
                sequence.learned,
                row_number=example.row_number,
                number=example.number,
                authored=authored.messages,
                learn_from=authored.learn_from,
                not_learned=authored.not_learned,
                **of_sequence,
            )
        else:
            writer.append_sequence(sequence.input_ids, sequence.learned, **of_sequence)


@contextmanager
def _rows_writer(out: Path | None) -> Iterator[TokenRowsWriter | None]:
    """Yield a writer that is discarded on any error; a read-only disk becomes an InputError, a full one a TryAgain."""
    if out is None:
        yield None
        return
    writer: TokenRowsWriter | None = None
    try:
        writer = TokenRowsWriter(out)
        yield writer
    except OSError as error:
        no_room = is_full(out) or says_no_space(error)
        if writer is not None:
            writer.discard()
        if no_room:
            raise volume_full(out) from error
        rule = f"cannot be written: {error.strerror or error}"
        fix = "give another folder with {field:output_dir}"
        raise InputError(Problem(str(out), rule, fix, field="output_dir")) from None
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
