"""One row as the model sees it, with the text in the loss marked: for a terminal, never for logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from llm_tuning.core.text import printable
from llm_tuning.data.chat import plain_template
from llm_tuning.data.faults import RowFault
from llm_tuning.data.labels import GOOD, LabelField
from llm_tuning.data.parser import RowParser
from llm_tuning.data.reading import DatasetFile
from llm_tuning.data.rows import Conversation, Example, Learn, RowForm
from llm_tuning.data.shown_text import Shown
from llm_tuning.data.spans import TurnRenderer
from llm_tuning.data.tokens import RowTokenizer
from llm_tuning.errors import in_words

MAX_CHARACTERS = 4000
"""Characters of the row that are shown."""

Segment = tuple[str, bool]
"""A piece of the rendered row and whether it is in the loss."""

_BETWEEN = "\n\n"
"""Between two texts."""
_GREEN, _RESET = "\x1b[32m", "\x1b[0m"


def render_sample(
    path: str | Path,
    *,
    form: RowForm,
    tokenizer_dir: Path | None,
    columns: Mapping[str, str] | None = None,
    learn: Learn = "all",
    learn_reasoning: bool = True,
    encoder: Tokenizer | None = None,
    max_length: int | None = None,
    row: int | None = None,
    color: bool = False,
) -> str:
    """Render the first usable row, or the one numbered `row`; text in the loss is green, or between >>> and <<<.

    What lies behind `max_length` tokens is not shown, since it is not trained on.

    "" where no row is usable; of a given row the reason why it is not. Without a base it is shown in the project's
    plain template. Raises InputError as `check_dataset` does.
    """
    tokenizer = None
    if tokenizer_dir is not None:
        tokenizer = RowTokenizer.load(tokenizer_dir, encoder, learn=learn, learn_reasoning=learn_reasoning)
    parser = RowParser(form, columns=columns)
    dataset = DatasetFile(Path(path))
    number = 0
    for number, values in dataset:
        try:
            example = parser.parse(number, values)
            if row is not None and number != row:
                continue
            if example is None:
                if number == row:
                    return f"Row {number} is left out: its author marks it as not to be learned\n"
                continue
            segments, lost = _segments(example, tokenizer, form.sides, max_length)
        except RowFault as fault:
            if number == row:
                return in_words(f"Row {number} is refused: {fault.rule} ({fault.reason}); {fault.fix}\n")
            continue
        place = dataset.place(number)
        head = f"{place[:1].upper()}{place[1:]}" if len(dataset.files) == 1 else printable(place)
        cut = f", cut off at {max_length:,} tokens ({lost:,} more)" if lost else ""
        return f"{head}{_said_of(example, form)}{cut}; the marked part is learned:\n\n{_paint(segments, color=color)}\n"
    return "" if row is None else f"There is no row {row}: the last one is {number}\n"


def sample_row(asked: bool | int) -> int | None:
    """Return the row that `--show_sample` asks for by its number; None: the first usable one."""
    return None if isinstance(asked, bool) else asked


def _said_of(example: Example, form: RowForm) -> str:
    """Return what the number of a row says of its answer."""
    if form.pairing is not None and len(example.sequences) == 1:
        return f" (reward {example.number:g}), which makes pairs with the other answers of its prompt"
    if isinstance(form.number, LabelField):
        return ", a good answer" if example.number == GOOD else ", a bad answer"
    return ""


def sample_segments(example: Example, tokenizer: RowTokenizer | None, sides: Sequence[str] = ()) -> list[Segment]:
    """Render a row in pieces, its sequences one below the other; raises RowFault where the template refuses it.

    `sides` are the names of the sequences of a pair.
    """
    return _segments(example, tokenizer, sides, None)[0]


def _segments(
    example: Example, tokenizer: RowTokenizer | None, sides: Sequence[str], max_length: int | None
) -> tuple[list[Segment], int]:
    """Return the pieces of a row up to where its texts are cut off, and how many tokens are."""
    segments: list[Segment] = []
    lost = 0
    named = len(sides) == len(example.sequences)
    for number, conversation in enumerate(example.sequences):
        if named:
            segments.append((f"{_BETWEEN * bool(segments)}{sides[number]}:\n", False))
        for shown in _texts(conversation, tokenizer, max_length):
            lost += shown.lost
            marks = [False] * len(shown.text)
            for start, end in shown.spans:
                marks[start:end] = [True] * (end - start)
            segments += [(_BETWEEN, False)] * (bool(segments) and not named) + list(_runs(shown.text, marks))
    return segments, lost


def _texts(conversation: Conversation, tokenizer: RowTokenizer | None, max_length: int | None) -> Iterator[Shown]:
    """Yield the texts that a conversation is trained as; without a tokenizer they are whole."""
    if tokenizer is not None:
        yield from tokenizer.shown(conversation, max_length=max_length)
    elif conversation.messages is None:
        yield Shown(conversation.text or "", [(0, len(conversation.text or ""))])
    else:
        for rendered in TurnRenderer(plain_template()).render(conversation):
            yield Shown(rendered.text, rendered.spans)


def _runs(text: str, marks: list[bool]) -> Iterator[Segment]:
    for learned, group in groupby(zip(text, marks, strict=True), key=lambda pair: pair[1]):
        yield "".join(character for character, _ in group), learned


def _paint(segments: list[Segment], *, color: bool) -> str:
    left = MAX_CHARACTERS
    parts = []
    for text, learned in segments:
        shown = printable(text[:left])
        left -= len(text[:left])
        if learned and shown:
            shown = f"{_GREEN}{shown}{_RESET}" if color else f">>>{shown}<<<"
        parts.append(shown)
    total = sum(len(text) for text, _ in segments)
    more = f"\n... {total - MAX_CHARACTERS:,} characters more" if total > MAX_CHARACTERS else ""
    return "".join(parts) + more
