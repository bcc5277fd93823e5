"""What the data check found, for machines (`model_dump_json`) and for people (`render_report`).

It holds counts, row numbers and field names, never a word of the data set itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel, PrivateAttr

from llm_tuning.core.text import counted, one_line
from llm_tuning.data.compared import ComparedReport, LabelReport, PairReport
from llm_tuning.data.faults import Reason
from llm_tuning.data.reading import FORMAT_NAMES, DatasetFile, Format
from llm_tuning.errors import PLAIN, Problem, Words, in_words

MAX_LISTED_FILES = 20
STYLES = {"Refused": "red", "Warning": "yellow", "Note": "cyan"}
"""Colours of the lines that ask for attention."""
MAX_LISTED_ROWS = 20
"""Row numbers kept of each kind; the counts beside them are complete."""


def _single(row_number: int) -> str:
    return f"row {row_number}"


class _Part(BaseModel):
    model_config = ComparedReport.model_config


class RowList(_Part):
    """Some of the rows, by number, and how many there are in all."""

    count: int = 0
    rows: list[int] = []
    """The first row numbers, at most MAX_LISTED_ROWS."""
    places: list[str] = []
    """The same rows by file and the number in it, where there are several files."""

    def add(self, row_number: int) -> None:
        self.count += 1
        if len(self.rows) < MAX_LISTED_ROWS:
            self.rows.append(row_number)

    def __str__(self) -> str:
        """Return `row 3`, `rows 3, 5 and 9` or `1,204 rows (3, 5, 9, ...)`; `part-2.jsonl row 3` of several files."""
        names = self.places or list(map(str, self.rows))
        rows = "" if self.places else "row " if self.count == 1 else "rows "
        if self.count == 1:
            return f"{rows}{names[0]}"
        if self.count <= 5:
            return f"{rows}{', '.join(names[:-1])} and {names[-1]}"
        return f"{self.count:,} rows ({', '.join(names[:5])}, ...)"


class Refused(RowList):
    """Rows refused for one reason."""

    reason: Reason
    rule: str
    """What is wrong, in words; with the field."""
    fix: str
    at: str = ""
    """The place inside the first of the rows."""

    @property
    def fault(self) -> str:
        """Rule and reason, as a problem has them."""
        return f"{self.rule} ({self.reason})"


class TokenLengths(_Part):
    """Tokens of the sequences of the kept rows, before any is cut."""

    p50: int
    p90: int
    p95: int
    p99: int
    max: int
    total: int


class TokenReport(_Part):
    """What the rows are as tokens; needs the base's tokenizer."""

    max_length: int
    lengths: TokenLengths | None = None
    """None if no row was kept."""
    learned: int = 0
    """Tokens in the loss, after the cut."""
    truncated: RowList = RowList()
    """Rows that lose their end to max_length."""
    tokens_lost: int = 0
    nothing_to_learn: int = 0
    """Rows refused because no token of theirs is left in the loss."""
    stop_tokens: list[str] = []
    """Tokens at which generation stops, as the base says."""
    rows_learning_end: int = 0
    """Rows whose sequences end with a stop token in the loss."""
    sequences: int = 0
    """Sequences that the kept rows became: a conversation is several where its template rewrites earlier turns."""
    answers: int = 0
    """Answers in the loss, at least in part; a row of text is one."""
    answers_cut: int = 0
    """Answers of kept rows that begin beyond max_length, so that nothing of them is in the loss."""
    several_sequences: RowList = RowList()
    """Rows whose answers have sequences of their own."""
    boundary_merges: RowList = RowList()
    """Rows whose prompt alone has other tokens than inside the row."""
    prompt_differs: RowList = RowList()
    """Rows whose answer the template begins otherwise than its own generation prompt."""
    unpaired_think: RowList = RowList()
    """Rows with an answer that closes a think block which it does not open."""
    left_out: RowList = RowList()
    """Rows with a message before the answer that is not in the rendered text."""
    served_otherwise: RowList = RowList()
    """Rows with a prompt that vLLM writes otherwise than the template: gpt-oss's results of tools."""
    ends_removed: RowList = RowList()
    """Rows with an answer that ended with an end token of the base."""
    special_tokens: RowList = RowList()
    """Rows with a message that holds special tokens of the base."""
    marked_texts: RowList = RowList()
    """Rows of text that hold special tokens of the base."""
    foreign_markers: RowList = RowList()
    """Rows of text that begin with a chat marker that is no token of the base."""


class Duplicates(RowList):
    """Rows equal to an earlier one."""

    exact: bool = True
    """False: so many rows that the count is an estimate from a sample of them."""


class RewardSpread(_Part):
    """Rewards of the kept rows."""

    min: float
    mean: float
    max: float
    std: float
    """Standard deviation over the rows (population)."""


class ToolReport(_Part):
    """Kept rows with tools and reasoning, whether they learn them or only show them."""

    declaring: int = 0
    """Rows that declare tools."""
    calling: int = 0
    """Rows with calls."""
    calls: int = 0
    several_at_once: int = 0
    """Rows with a turn that calls several times."""
    reasoning: int = 0
    """Rows with reasoning, in a field of its own or in a think block."""

    def __str__(self) -> str:
        said = []
        if self.declaring or self.calling:
            several = f", {self.several_at_once:,} of them several in a turn" if self.several_at_once else ""
            declare = "declares" if self.declaring == 1 else "declare"
            have = "has" if self.calling == 1 else "have"
            calls = f"{self.calling:,} {have} {counted(self.calls, 'call')}{several}"
            said.append(f"{counted(self.declaring)} {declare} tools, {calls}")
        if self.reasoning:
            said.append(f"{counted(self.reasoning)} {'has' if self.reasoning == 1 else 'have'} reasoning")
        return "; ".join(said)


class FoundProblem(_Part):
    """One reason why the run is refused: where, rule, fix."""

    where: str
    rule: str
    fix: str = ""
    field: str = "dataset.path"
    """The API field that it is about."""


class Report(_Part):
    """The whole check of one data set, or of the rows to evaluate on inside that of a data set."""

    ok: bool = True
    """Whether a run may start on these rows."""
    _place: Callable[[int], str] = PrivateAttr(default_factory=lambda: _single)
    path: str
    mode: str
    format: Format | None = None
    compression: str | None = None
    """gzip or zstd, where the files are compressed."""
    files: int = 1
    """Files that the rows are in. The rows of several are numbered through; `places` beside them names the file."""
    skipped_files: list[str] = []
    """What lies beside them and is not read: paths, at most MAX_LISTED_FILES."""
    skipped_files_count: int = 0
    row_numbers: str = ""
    """What row numbers count: lines (JSON Lines) or positions from 1."""
    shape: str | None = None
    rows: int = 0
    """Rows read."""
    kept: int = 0
    refused: int = 0
    refusals: list[Refused] = []
    """The refused rows by reason."""
    ignored_fields: list[str] = []
    """Fields of the rows that nothing uses."""
    rows_trimmed: int = 0
    """Rows with messages after the last answer that is learned; those messages are left out."""
    rows_left_out: int = 0
    """Rows that their author marked as not learned (`train`, `weight`, ...): neither kept nor refused."""
    tokens: TokenReport | None = None
    prompts: int | None = None
    """Different prompts of the kept rows: rows of one prompt are held out together. A row of text is its own prompt."""
    in_training: RowList = RowList()
    """Of rows to evaluate on, those whose prompt is among the training rows: they are left out of the scores."""
    duplicates: Duplicates = Duplicates()
    rewards: RewardSpread | None = None
    pairs: PairReport | None = None
    """Of a mode that compares two answers."""
    tools: ToolReport = ToolReport()
    labels: LabelReport | None = None
    """Of a mode that learns from answers marked as good or bad."""
    data_hash: str | None = None
    """sha256 of the file's bytes; None if it could not be read to its end."""
    template_hash: str | None = None
    template_source: str | None = None
    """Where the chat template is from; plain_chat.jinja is the project's own, for a base that has none."""
    notes: list[str] = []
    warnings: list[str] = []
    problems: list[FoundProblem] = []
    evaluation: Report | None = None
    """The rows of `dataset.evaluation`, where they have a file of their own; its problems stand above, too."""

    @property
    def compared(self) -> list[ComparedReport]:
        """What is said of pairs or labels, where there are some."""
        return [part for part in (self.pairs, self.labels) if part is not None and self.kept]

    @property
    def examples(self) -> int:
        """What is trained on: the kept rows, or the pairs that they make."""
        return self.pairs.count if self.pairs is not None else self.kept

    @property
    def evaluated(self) -> int:
        """Examples that scores are made of, in the report of rows to evaluate on."""
        if self.pairs is not None and self.pairs.from_ratings:
            return self.pairs.count - self.pairs.in_training
        return self.kept - self.in_training.count

    def take(self, evaluation: Report) -> None:
        """Make the problems of the rows to evaluate on problems of the whole."""
        self.ok = self.ok and evaluation.ok
        self.problems += [found.model_copy(update={"field": "dataset.evaluation"}) for found in evaluation.problems]

    def refuse(self, problem: Problem) -> None:
        """Add a reason for which no run may start."""
        self.ok = False
        self.problems.append(_found(problem))

    def place(self, row_number: int) -> str:
        """Return where the row of this number is: `row 3`, or the file and the number in it."""
        return self._place(row_number)

    def name_places(self, place: Callable[[int], str]) -> None:
        """Say of every row that is listed where it is, by `place`, if there are several files."""
        if self.files == 1:
            return
        self._place = place
        for rows in _row_lists(self):
            rows.places = list(map(place, rows.rows))

    def in_words(self, words: Words = PLAIN) -> Report:
        """Return a copy in an edge's words, with the placeholders in its sentences filled (`llm_tuning.errors`)."""
        return Report.model_validate(_in_words(self.model_dump(), words))

    def summary(self) -> str:
        """Return the report as plain lines of text, without the problems."""
        return "\n".join(f"{label}: {text}" for label, text in summary_lines(self))

    def input_problems(self) -> list[Problem]:
        """Return the problems as an InputError takes them."""
        return [Problem(p.where, p.rule, p.fix, field=p.field) for p in self.problems]


def _found(problem: Problem) -> FoundProblem:
    found = FoundProblem(where=problem.where, rule=problem.rule, fix=problem.fix)
    return found.model_copy(update={"field": problem.field}) if problem.field else found


def describe(report: Report, dataset: DatasetFile) -> None:
    """Put into the report what kind of files the rows are in."""
    report.format, report.compression = dataset.format, dataset.compression
    report.files, report.row_numbers = len(dataset.files), dataset.numbering
    name_skipped(report, dataset.skipped)


def name_skipped(report: Report, files: Sequence[str]) -> None:
    """Put into the report what lies beside its files and is not read: paths."""
    report.skipped_files, report.skipped_files_count = list(files[:MAX_LISTED_FILES]), len(files)


def _row_lists(part: BaseModel) -> Iterator[RowList]:
    for name in type(part).model_fields:
        value = getattr(part, name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, RowList):
                yield item
            elif isinstance(item, BaseModel):
                yield from _row_lists(item)


def _in_words(value: Any, words: Words) -> Any:
    match value:
        case str():
            return in_words(value, words)
        case dict():
            return {name: _in_words(item, words) for name, item in value.items()}
        case list():
            return [_in_words(item, words) for item in value]
    return value


def summary_lines(report: Report) -> list[tuple[str, str]]:
    """Return the report as (label, text) lines, without the problems."""
    numbering = f", row numbers are {report.row_numbers}" if report.row_numbers else ""
    kind = FORMAT_NAMES[report.format] if report.format else "unknown format"
    kind += f", {report.compression}" if report.compression else ""
    kind = f"{report.files:,} files of {kind}" if report.files > 1 else kind
    shape = f", rows are {report.shape}" if report.shape else ""
    of = f"; {report.prompts:,} different {'prompt' if report.prompts == 1 else 'prompts'}" if report.prompts else ""
    lines = [
        ("Dataset", f"{report.path} ({kind}{shape}{numbering})"),
        ("Rows", f"{report.rows:,} read, {report.kept:,} kept, {report.refused:,} refused{of}"),
    ]
    problems = {problem.rule for problem in report.problems}
    lines += [
        ("Refused", f"{refused}: {refused.fault}; {refused.fix}")
        for refused in report.refusals
        if refused.fault not in problems
    ]
    lines += _token_lines(report)
    if said := str(report.tools):
        lines.append(("Tools", said))
    if report.duplicates.count:
        about = "" if report.duplicates.exact else "about "
        lines.append(("Duplicates", f"{about}{report.duplicates}"))
    if report.rewards:
        spread = report.rewards
        text = f"min {spread.min:g}, mean {spread.mean:.4g}, max {spread.max:g}, std {spread.std:.4g}"
        lines.append(("Rewards", text))
    lines += [(compared.title, compared.line()) for compared in report.compared]
    if report.data_hash:
        lines.append(("Data hash", f"sha256 {report.data_hash}"))
    if report.template_hash:
        lines.append(("Template", f"{report.template_source}, sha256 {report.template_hash}"))
    lines += [("Note", note) for note in report.notes]
    lines += [("Warning", warning) for warning in report.warnings]
    lines = [(label, one_line(text)) for label, text in lines]
    if report.evaluation is not None:
        lines += map(_of_evaluation, summary_lines(report.evaluation))
    return lines


def _of_evaluation(line: tuple[str, str]) -> tuple[str, str]:
    """Tell a line on the rows to evaluate on from the same line on the training rows."""
    label, text = line
    if label in STYLES:
        return label, f"evaluation: {text}"
    return ("Evaluation" if label == "Dataset" else f"- {label.lower()}"), text


def _token_lines(report: Report) -> list[tuple[str, str]]:
    tokens = report.tokens
    if tokens is None or tokens.lengths is None:
        return []
    lengths = tokens.lengths
    spread = f"p50 {lengths.p50:,}, p90 {lengths.p90:,}, p95 {lengths.p95:,}, p99 {lengths.p99:,}, max {lengths.max:,}"
    several = tokens.several_sequences.count > 0
    each = "sequence" if several else "row"
    lines = [("Tokens", f"{lengths.total:,} in all, {tokens.learned:,} learned; a {each}: {spread}")]
    if several or (report.pairs is None and tokens.answers > report.kept):
        rows, sequences = counted(report.kept), counted(tokens.sequences, "sequence")
        are = "is" if report.kept == 1 else "are"
        became = f"{rows} {are} {sequences} with {counted(tokens.answers, 'learned answer')}"
        lines.append(("Answers", became))
    if tokens.truncated.count:
        share = tokens.tokens_lost / lengths.total
        text = f"{tokens.truncated}: {tokens.tokens_lost:,} tokens ({share:.1%}) beyond {tokens.max_length:,} are lost"
        text += f", and {tokens.answers_cut:,} whole answers" if tokens.answers_cut else ""
        lines.append(("Truncated", text))
    ends = ", ".join(tokens.stop_tokens) or "none known"
    lines.append(("End token", f"{ends}: learned in {tokens.rows_learning_end:,} of {report.kept:,} rows"))
    return lines


def render_report(report: Report, *, color: bool = False, width: int | None = None) -> str:
    """Render the report for people: aligned, and with colour for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in summary_lines(report):
        style = STYLES.get(label, "")
        table.add_row(Text(label, style=style or "bold"), Text(text, style=style))
    console = Console(
        force_terminal=color, no_color=not color, width=width or (None if color else 200), highlight=False
    )
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
