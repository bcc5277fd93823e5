"""What the counts of a check mean: problems that refuse the run, warnings with their remedy, and notes."""

from __future__ import annotations

from pathlib import Path

from llm_tuning.core.text import counted
from llm_tuning.data.faults import Fact, Reason
from llm_tuning.data.parser import RowParser
from llm_tuning.data.reading import one_object_problem
from llm_tuning.data.report import Refused, Report
from llm_tuning.data.splitting import MIN_ROWS_TO_SPLIT
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.errors import Problem

MIN_ROWS = 2
"""One row cannot be distinguished from its noise, and nothing could be held out."""
MAX_NAMES = 500
"""Fields that are not used, in a note; the report has them all."""
MANY_TO_ONE = 9
"""So many good rows for a bad one, and leaving out the bad ones is worth a thought."""
_WARNINGS: dict[str, str] = {
    Fact.BOUNDARY_MERGES: "the prompt of {} has other tokens alone than before its answer: let prompts end, or answers "
    "begin, without white space",
    Fact.UNPAIRED_THINK: "an answer of {} closes a think block that it does not open: what stands before </think> is "
    "learned as reasoning",
    Fact.LEFT_OUT: "the chat template leaves out a message of {}: the answer is learned without it; remove such "
    "messages, or write them as turns of the user",
    Fact.SERVED_OTHERWISE: "vLLM writes the prompts of gpt-oss by OpenAI's Harmony, and that of {} otherwise than the "
    "chat template, behind which its answer is learned: results of tools without quotation marks, a system message "
    "without an empty line behind it",
    Fact.SPECIAL_TOKENS: "messages of {} hold special tokens of the base, which are read as tokens and not as text: "
    "remove them if they were not written on purpose",
    Fact.FOREIGN_MARKERS: "texts of {} begin with a chat marker that is no token of the base: they are rendered for "
    "another model",
}
"""By the field of the report that holds the rows."""
_NOTES: dict[str, str] = {
    Fact.SEVERAL_SEQUENCES: "the template rewrites earlier turns: the answers of {} are learned in sequences of their "
    "own, each as it is served",
    Fact.PROMPT_DIFFERS: "the template writes the answer of {} otherwise than its generation prompt begins it: it is "
    "learned behind the generation prompt, as it is served",
    Fact.ENDS_REMOVED: "an answer of {} ended with an end token of the base: it is removed, since the template writes "
    "one",
    Fact.MARKED_TEXTS: "texts of {} hold special tokens of the base: they are learned as they stand, without a chat "
    "template around them",
}
_OF_ROWS = {
    "placeholders": "{{name}} placeholders are learned as they stand: fill them in if they stand for something",
    "images": "`<image>` stands for an image that is not seen in training: leave such rows out",
    "missing values": "a text that is `nan`, `#N/A`, `<noinput>` or the like and nothing else is learned as it stands: "
    "remove such rows if a value is missing there",
    "cues": "a text that ends with `Assistant:`, `### Response:` or the like is rendered already, for a model without "
    "a chat template: give the plain question, since the template is written around it",
    "swapped scores": "the chosen answer has the lower score: its row may have its sides the wrong way round",
}
"""What is said of rows that a RowParser counts."""
_DEFECTS = (Reason.UNKNOWN_SHAPE, Reason.MISSING_FIELD)


def judge(
    report: Report,
    parser: RowParser,
    tokenizer: RowTokenizer | None,
    *,
    tokenizer_dir: Path | None,
    skip_invalid_rows: bool,
) -> None:
    """Complete the report of the training rows, whose counts are written; that of the evaluation rows is complete."""
    _copy_facts(report, parser, tokenizer)
    if tokenizer is not None:
        report.template_hash = tokenizer.template.hash
        report.template_source = tokenizer.template.source
    if report.data_hash is not None:  # else the file itself is the problem, and the counts are of a part of it
        _find_problems(report, skip_invalid_rows=skip_invalid_rows, fewest=MIN_ROWS)
        if report.kept >= MIN_ROWS:
            for problem in parser.form.judge(report):
                report.refuse(problem)
    _find_warnings(report, parser)
    if report.evaluation is None and report.prompts == 1 and report.examples >= MIN_ROWS_TO_SPLIT:
        report.warnings.append("all rows have one prompt, so none can be held out to show what the adapter has learned")
    _find_notes(report, parser)
    _find_notes_on_base(report, tokenizer, tokenizer_dir)
    if report.evaluation is not None:
        report.take(report.evaluation)


def judge_evaluation(
    report: Report, parser: RowParser, tokenizer: RowTokenizer | None, *, skip_invalid_rows: bool
) -> None:
    """Complete the report of rows to evaluate on: one is enough, and they need not make sense to train on."""
    _copy_facts(report, parser, tokenizer)
    seen = report.in_training
    if report.data_hash is not None:
        _find_problems(report, skip_invalid_rows=skip_invalid_rows, fewest=1)
        if report.kept and seen.count == report.kept:
            rule = f"has {counted(report.kept, 'usable row')}, all with a prompt of the training rows"
            fix = "give rows with prompts of their own, or leave {field:dataset.evaluation} out: a share is held out"
            report.refuse(Problem(report.path, rule, fix))
        elif report.kept and not report.evaluated:
            rule = "makes no pair to evaluate on: no two answers of a prompt of its own are rated far enough apart"
            fix = "give several rated answers a prompt, or leave {field:dataset.evaluation} out: a share is held out"
            report.refuse(Problem(report.path, rule, fix))
    _find_warnings(report, parser)
    if report.ok and seen.count:
        what = "has its prompt" if seen.count == 1 else "have their prompts"
        report.warnings.append(f"{seen} {what} among the training rows and no part in the scores")
    _find_notes(report, parser)


def _copy_facts(report: Report, parser: RowParser, tokenizer: RowTokenizer | None) -> None:
    """Copy what the parser has seen of the file and the tokenizer knows."""
    report.shape = parser.shape.name if parser.shape is not None else None
    report.ignored_fields = sorted(parser.ignored_fields)
    report.rows_trimmed = parser.counts["trimmed"]
    report.rows_left_out = parser.counts["left out"]
    if tokenizer is not None and report.tokens is not None:
        report.tokens.stop_tokens = tokenizer.stop_tokens


def _find_problems(report: Report, *, skip_invalid_rows: bool, fewest: int) -> None:
    if report.format == "jsonl" and (report.files, report.rows) == (1, 1) and report.refusals:
        is_row = not any(refused.reason in _DEFECTS for refused in report.refusals)
        has_shape = report.shape is not None
        if (problem := one_object_problem(Path(report.path), is_row=is_row, has_shape=has_shape)) is not None:
            report.refuse(problem)
            report.refusals = []  # their remedies are for a row, which the object is none of
            return
    if report.refusals and (not skip_invalid_rows or report.kept < fewest):
        for refused in report.refusals:
            report.refuse(_refused_problem(report.path, refused, _to_skip(report)))
    if report.kept < fewest and (skip_invalid_rows or not report.refusals):
        rule = f"holds {counted(report.kept, 'usable row')}"
        report.refuse(Problem(report.path, rule, f"a run needs at least {fewest}"))


def _to_skip(report: Report) -> str:
    """Return how to train on the other rows, "" where so many are refused that the file itself is at fault."""
    if report.kept < MIN_ROWS or report.kept < MANY_TO_ONE * report.refused:
        return ""
    return f"or {{set:dataset.skip_invalid_rows=true}} to train on the other {report.kept:,}"


def _refused_problem(path: str, refused: Refused, or_else: str) -> Problem:
    first = "first at " if refused.count > 1 else ""
    inside = f", {first}{refused.at}" if refused.at else ""
    where = str(refused) if refused.places else f"{path}, {refused}"
    return Problem(f"{where}{inside}", refused.fault, "; ".join(filter(None, (refused.fix, or_else))))


def _find_warnings(report: Report, parser: RowParser) -> None:
    tokens = report.tokens
    warn = report.warnings.append
    if tokens is not None and report.kept:
        if not tokens.stop_tokens:
            warn(
                "the base names no end token, so none is learned: answers will not stop; set eos_token in its tokenizer"
            )
        elif tokens.rows_learning_end == 0:
            warn(
                "no end token is learned: answers will not stop; use a chat template that ends the assistant's turn "
                "with the end token, or raise {field:training.max_length} if every row is cut"
            )
        elif tokens.rows_learning_end < report.kept - tokens.truncated.count:
            missing = report.kept - tokens.truncated.count - tokens.rows_learning_end
            which = "row that is not cut ends" if missing == 1 else "rows that are not cut end"
            warn(f"{missing:,} {which} without an end token: such answers may not stop")
        if tokens.truncated.count:
            at = f"{{field:training.max_length}} {tokens.max_length:,}"
            warn(f"{tokens.truncated} cut at {at}: raise it to keep the whole answers")
        for name, sentence in _WARNINGS.items():
            if (rows := getattr(tokens, name)).count:
                warn(sentence.format(rows))
    if report.duplicates.count:
        warn(f"{report.duplicates} equal to an earlier row: remove repeats that are not meant")
    for name, said in _OF_ROWS.items():
        if count := parser.counts[name]:
            first = report.place(parser.first[name])
            warn(f"{said} ({first if count == 1 else f'{count:,} rows, the first is {first}'})")
    for compared in report.compared:
        report.warnings += compared.warnings()
    if report.refusals and report.ok:
        are = (
            "is skipped: correct it to train on it"
            if report.refused == 1
            else "are skipped: correct them to train on them"
        )
        warn(f"{counted(report.refused, 'refused row')} {are}")


def _find_notes_on_base(report: Report, tokenizer: RowTokenizer | None, tokenizer_dir: Path | None) -> None:
    note = report.notes.append
    if tokenizer_dir is None:
        note("token lengths were not checked: that takes a base ({field:model.path})")
    elif tokenizer is None:
        note("the base has no tokenizer.json: token lengths are checked in the run")
    elif tokenizer.template.is_plain and report.shape != "text":
        note("the base has no chat template: the project's plain one is used and stored with the adapter")
    elif tokenizer.template.writes_the_date:
        note("the chat template writes the current date into the prompt")


def _find_notes(report: Report, parser: RowParser) -> None:
    note = report.notes.append
    for name, sentence in _NOTES.items():
        if report.tokens is not None and (rows := getattr(report.tokens, name)).count:
            note(sentence.format(rows))
    for compared in report.compared:
        report.notes += compared.notes()
    if ties := parser.counts["equal scores"]:
        note(f"pairs whose answers have the same score: {ties:,} of {report.kept:,}")
    if report.rows_trimmed:
        note(f"messages after the last answer to learn are left out in {counted(report.rows_trimmed)}")
    if report.rows_left_out:
        note(f"rows that are marked as not learned are left out: {report.rows_left_out:,}")
    if report.files > 1:
        note(f"the {report.files:,} files are read in the order of their names")
    if report.skipped_files:
        more = report.skipped_files_count - len(report.skipped_files)
        rest = f" and {more:,} more" if more else ""
        note(f"files that are not read: {', '.join(report.skipped_files)}{rest}")
    if report.ignored_fields:
        names = report.ignored_fields[:MAX_NAMES]
        more = len(report.ignored_fields) - len(names)
        note(f"fields that are not used: {', '.join(names)}" + (f" and {more:,} more" if more else ""))
