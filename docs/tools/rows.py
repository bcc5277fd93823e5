"""docs/reference/rows.md and the table of rows in the README, made from the modes' forms and the table of fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from docs.tools.tables import table
from llm_tuning.data.row_fields import FLAGS, HISTORY, KINDS, PREFIX, SYSTEM, FieldKind
from llm_tuning.data.rows import RowForm, Shape
from llm_tuning.data.unknown_rows import propose_columns
from llm_tuning.modes import MODES

Lines = Iterable[str]

_FORMS: dict[str, RowForm] = {name: mode.rows for name, mode in MODES.items()}
_SAMPLES = (
    ("question", "answer"),
    ("input", "output"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("instruction", "context", "response"),
    ("query", "response"),
    ("problem", "solution"),
    ("inputs", "targets"),
    ("article", "highlights"),
    ("Prompt", "Output"),
)
_PAIRS = (
    ("question", "chosen", "rejected"),
    ("prompt", "chosen_response", "rejected_response"),
    ("query", "response", "rejected_response"),
    ("prompt", "preferred", "dispreferred"),
    ("instruction", "better_response", "worse_response"),
    ("question", "context", "chosen_answer", "rejected_answer"),
)
_READ_BESIDE = (
    ("tools", "`tools` or `functions` of a row: a list, its JSON text, or a list of such texts"),
    (
        "calls",
        "`tool_calls` or `function_call` of an assistant's turn; a turn `function_call` (ShareGPT) or `tool_call` "
        "(ms-swift)",
    ),
    (
        "results",
        "a turn of role `tool`, `function`, `observation` (ShareGPT) or `tool_response` (ms-swift), with "
        "`tool_call_id` and `name` where they are given",
    ),
    ("what is asked for", "`parallel_tool_calls` and `tool_choice` of a row: its answers have to keep to them"),
    ("reasoning", "`reasoning_content`, `reasoning` or `thinking` of an assistant's turn, or of a row with one answer"),
)
_FEW = 4
"""Names of a kind that the README shows."""


def rows_page() -> Lines:
    """Which rows and fields are known, and what each does in each mode."""
    yield from ("# Rows: every shape and field", "")
    yield from (
        "A field that changes what should be learned is honoured, or it refuses the row by its name; what cannot",
        "matter is named in a note. Names are compared without upper case, `_` and `-`. Fields that are null, empty,",
        '`[]` or `"[]"` are not there. Every shape has an example in [datasets](../datasets.md).',
        "",
    )
    yield from ("## Shapes", "", *table(("Row", *_FORMS), _shapes()))
    yield 'A `content` may be given as parts (`[{"type": "text", "text": ...}]`): line breaks join them, as in vLLM.'
    yield from ("", "## Fields that are honoured", "", *table(("Field", *_FORMS), _honoured(_code)))
    yield from ("## Tools, calls and reasoning", "", *table(("What", "Read by the names"), _READ_BESIDE))
    yield "A call has to fit the schema of a tool that the row declares, and every result has to have its call."
    yield "[Which templates can say them](templates.md)."
    yield ""
    yield from ("## Fields that refuse a row", "")
    yield from table(("What", "Of a row", "Of a turn, a part or a role", *_FORMS), map(_refused, KINDS))
    yield from (
        "A further text that could be what is asked or answered (`prompt`, `context`, `solution`, ...) is a copy of",
        "what the shape says, or it refuses the row. `dataset.columns` then says which one is meant.",
        "",
    )
    yield from ("## Other names", "")
    yield from (
        "Rows with these fields are refused, with the columns that make them work; any other name can be given, too.",
        "`role` and `content` name the fields of messages.",
        "",
    )
    yield from table(("Fields", "`--columns`"), _proposed())


def readme_table() -> Lines:
    """Return the same in short."""
    yield from table(("Row or field", *_FORMS), (*_shapes(), *_honoured(_few), *map(_in_short, KINDS)))


def _shapes() -> Iterator[tuple[str, ...]]:
    shapes = {shape.name: shape for form in _FORMS.values() for shape in form.shapes}
    for shape in shapes.values():
        yield (_fields(shape), *(_shape_in(form, shape) for form in _FORMS.values()))


def _fields(shape: Shape) -> str:
    return f"`{{{', '.join((*shape.fields, *(f'{name}?' for name in shape.optional)))}}}`"


def _shape_in(form: RowForm, shape: Shape) -> str:
    own = next((own for own in form.shapes if own.name == shape.name), None)
    if own is None:
        return "refused"
    if own.is_text:
        return "all of it is learned"
    if form.sides and not own.numbered:
        return "both answers are compared"
    if form.number is None:
        return "every answer is learned" if not own.history else "the answer is learned"
    *others, last = (f"`{name}`" for name in form.number.names)
    names = f"{', '.join(others)} or {last}"
    if form.pairing is not None:
        return f"answers of one prompt are compared, by {names}"
    which = "the answer" if own.history else "the last answer"
    return f"{which} is learned, with {names}"


def _honoured(names: Callable[[tuple[str, ...]], str]) -> Iterator[tuple[str, ...]]:
    count = len(_FORMS)
    yield (names(SYSTEM), *("the first message",) * count)
    learned = ("before the prompt, its answers learned", "before the prompt, its answers not learned")
    yield (names(HISTORY), *(learned[not form.learns_history] for form in _FORMS.values()))
    yield (f"{_code(FLAGS)} of a turn", *("0 or false: seen, not learned",) * count)
    yield (f"{_code(FLAGS)} of a row", *("0 or false: left out, and counted",) * count)
    yield (f"{_code(PREFIX)} of an assistant turn", *("given with the prompt; the next turn goes on with it",) * count)


def _refused(kind: FieldKind) -> tuple[str, ...]:
    inside = _code((*kind.turn, *(name for name in (*kind.parts, *kind.roles) if name not in kind.turn)))
    return (kind.title, _code(kind.row), inside, *(_in(form, kind) for form in _FORMS.values()))


def _in_short(kind: FieldKind) -> tuple[str, ...]:
    return (f"{kind.title}: {_few(kind.row)}", *(_in_words(form, kind) for form in _FORMS.values()))


def _in_words(form: RowForm, kind: FieldKind) -> str:
    return "learned" if kind.name in form.takes and kind.read else _in(form, kind)


def _in(form: RowForm, kind: FieldKind) -> str:
    if kind.name in form.takes:
        if kind.read:
            return "refused, but for the names above"
        return form.advice.get(kind.name, "learned from")
    return f"refused: {form.advice[kind.name]}" if kind.name in form.advice else "refused"


def _proposed() -> Iterator[tuple[str, ...]]:
    of_pairs = next(form for form in _FORMS.values() if form.sides)
    for form, sample in (*((_FORMS["sft"], sample) for sample in _SAMPLES), *((of_pairs, pair) for pair in _PAIRS)):
        columns = propose_columns(form, dict.fromkeys(sample, "text"))
        assert columns, sample
        yield _code(sample), f"`{','.join(f'{own}={given}' for own, given in columns.items())}`"


def _few(names: Sequence[str]) -> str:
    return _code(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))
