"""The sample marks what is learned and keeps escape sequences of a row off the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.faults import RowFault
from llm_tuning.data.parser import RowParser
from llm_tuning.data.sample import MAX_CHARACTERS, render_sample
from llm_tuning.data.tokens import RowTokenizer, TokenisedRow
from llm_tuning.modes.sft import SFT
from tests.support.tokenizer_layouts import ALIKE, make_layout

WriteLines = Callable[[Sequence[Any]], Path]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "the answer"}
ROW = {"prompt": "q", "output": "the answer 🙂"}


def test_the_learned_part_is_marked(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    text = render_sample(write_lines([{"prompt": ""}, ROW]), form=SFT.rows, tokenizer_dir=tokenizer_dir)
    assert text.startswith("Row 2; the marked part is learned:")
    assert "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n>>>the answer 🙂<|im_end|><<<\n" in text


def test_on_a_terminal_it_is_green(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    text = render_sample(write_lines([ROW]), form=SFT.rows, tokenizer_dir=tokenizer_dir, color=True)
    assert "\x1b[32mthe answer 🙂<|im_end|>\x1b[0m" in text


def test_without_a_base_the_plain_template_is_shown(write_lines: WriteLines) -> None:
    text = render_sample(write_lines([ROW]), form=SFT.rows, tokenizer_dir=None)
    assert "### User:\nq\n\n### Assistant:\n>>>the answer 🙂" in text


def test_text_rows_are_learned_whole(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    text = render_sample(write_lines([{"text": "all of it"}]), form=SFT.rows, tokenizer_dir=tokenizer_dir)
    assert text.endswith("al>>>l of it<|im_end|><<<\n"), text  # nothing is before the first token


@pytest.mark.parametrize("given", ["A loop", "<s>A loop</s>"])
def test_a_text_is_shown_with_the_tokens_around_it(tmp_path: Path, write_lines: WriteLines, given: str) -> None:
    base = make_layout(tmp_path / "base", ALIKE["a text begins with <s>"])
    text = render_sample(write_lines([{"text": given}]), form=SFT.rows, tokenizer_dir=base)
    assert text.endswith("<s>>>>A loop</s><<<\n"), text


def test_white_space_behind_an_end_token_is_shown_as_not_learned(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    row = {"text": "all of it<|im_end|>\n"}
    text = render_sample(write_lines([row]), form=SFT.rows, tokenizer_dir=tokenizer_dir)
    assert text.endswith("al>>>l of it<|im_end|><<<\n\n"), text


@pytest.mark.parametrize("row", [ROW, {"text": "q and the answer"}, {"messages": [USER, ANSWER, USER, ANSWER]}])
def test_what_is_cut_off_is_not_shown_as_learned(
    tokenizer_dir: Path, write_lines: WriteLines, row: dict[str, Any]
) -> None:
    """At every length the sample marks what the tokens of the row have in the loss, and counts what is lost."""
    path = write_lines([row])
    show = partial(render_sample, path, form=SFT.rows, tokenizer_dir=tokenizer_dir)
    tokenizer = RowTokenizer.load(tokenizer_dir)
    example = RowParser(SFT.rows).parse(1, row)
    assert tokenizer is not None
    assert example is not None
    (whole,) = tokenizer.tokenise([example], max_length=1000)
    assert isinstance(whole, TokenisedRow)
    count = len(whole.sequences[0].input_ids)
    assert show(max_length=count) == show()
    cuts = 0
    for most in range(1, count):
        (kept,) = tokenizer.tokenise([example], max_length=most)
        if isinstance(kept, RowFault):
            continue
        cuts += 1
        head, _, shown = show(max_length=most).partition(":\n\n")
        assert head.startswith(f"Row 1, cut off at {most} tokens ({count - most} more)")
        learned = "".join(part.partition("<<<")[0] for part in shown.split(">>>")[1:])
        ids = kept.sequences[0].input_ids[kept.sequences[0].learned]
        exact = tokenizer.text(ids.tolist()).rstrip("\ufffd")  # half of a character is shown as the whole of it
        assert (learned[: len(exact)], len(learned) <= len(exact) + 1) == (exact, True)
    assert cuts


def test_escape_sequences_are_shown_not_sent(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    row = {"prompt": "q\x1b[2J\r", "output": "a\x07\u202e"}
    text = render_sample(write_lines([row]), form=SFT.rows, tokenizer_dir=tokenizer_dir)
    assert r"q\x1b[2J\x0d" in text
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)


def test_long_rows_are_cut_and_no_row_is_nothing(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    row = {"prompt": "q", "output": "x" * (2 * MAX_CHARACTERS)}
    text = render_sample(write_lines([row]), form=SFT.rows, tokenizer_dir=tokenizer_dir)
    assert "characters more" in text
    assert len(text) < MAX_CHARACTERS + 200
    assert render_sample(write_lines([{"prompt": ""}] * 2), form=SFT.rows, tokenizer_dir=tokenizer_dir) == ""


def test_a_row_is_shown_by_its_number_or_the_reason_why_not(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    path = write_lines([ROW, {"prompt": "", "output": "a"}, {"prompt": "the odd one", "output": "here"}])

    def shown(row: int) -> str:
        return render_sample(path, form=SFT.rows, tokenizer_dir=tokenizer_dir, row=row)

    assert shown(3).startswith("Row 3; the marked part is learned:")
    assert "the odd one" in shown(3)
    assert shown(2).startswith("Row 2 is refused: `prompt` is empty (EmptyField); ")
    assert shown(4) == "There is no row 4: the last one is 3\n"
