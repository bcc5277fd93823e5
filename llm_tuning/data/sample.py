"""One row as the model sees it, with the text in the loss marked: for a terminal, never for logs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from llm_tuning.core.text import printable
from llm_tuning.data.chat import plain_template
from llm_tuning.data.faults import RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.reading import DatasetFile
from llm_tuning.data.rows import Conversation, Example, RowForm
from llm_tuning.data.spans import Span, TurnRenderer
from llm_tuning.data.tokens import RowTokenizer

MAX_CHARACTERS = 4000
"""Characters of the row that are shown."""

Segment = tuple[str, bool]
"""A piece of the rendered row and whether it is in the loss."""

_GREEN, _RESET = "\x1b[32m", "\x1b[0m"


def render_sample(
    path: str | Path,
    *,
    form: RowForm,
    tokenizer_dir: Path | None,
    encoder: Tokenizer | None = None,
    color: bool = False,
) -> str:
    """Render the first usable row, "" if there is none; text in the loss is green, or between >>> and <<<.

    Without a base the row is shown in the project's plain template. Raises InputError as `check_dataset` does.
    """
    tokenizer = RowTokenizer.load(tokenizer_dir, encoder) if tokenizer_dir is not None else None
    parser = RowParser(form)
    dataset = DatasetFile(Path(path))
    for number, row in dataset:
        try:
            example = parser.parse(number, row)
            if example is None:
                continue
            segments = sample_segments(example, tokenizer)
        except RowFault:
            continue
        place = dataset.place(number)
        head = f"{place[:1].upper()}{place[1:]}" if len(dataset.files) == 1 else printable(place)
        return f"{head}; the marked part is learned:\n\n{_paint(segments, color=color)}\n"
    return ""


def sample_segments(example: Example, tokenizer: RowTokenizer | None) -> list[Segment]:
    """Render a row in pieces, its sequences one below the other; raises RowFault where the template refuses it."""
    segments: list[Segment] = []
    for text, spans in (shown for conversation in example.sequences for shown in _texts(conversation, tokenizer)):
        marks = [False] * len(text)
        for start, end in spans:
            marks[start:end] = [True] * (end - start)
        segments += [("\n\n", False)] * bool(segments) + list(_runs(text, marks))
    return segments


def _texts(conversation: Conversation, tokenizer: RowTokenizer | None) -> Iterator[tuple[str, list[Span]]]:
    """Yield the texts that a conversation is trained as, with the characters that are learned."""
    if tokenizer is not None:
        yield from tokenizer.shown(conversation)
    elif conversation.messages is None:
        yield conversation.text or "", [(0, len(conversation.text or ""))]
    else:
        for rendered in TurnRenderer(plain_template()).render(conversation):
            yield rendered.text, rendered.spans


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
