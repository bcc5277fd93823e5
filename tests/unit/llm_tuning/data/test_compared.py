"""What the report says of pairs and labels: lengths, contradictions, prompts with one kind of answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import DatasetRefused, check_dataset, examine_dataset
from llm_tuning.data.report import Report, summary_lines
from llm_tuning.data.rows import RowForm
from llm_tuning.data.sample import render_sample
from llm_tuning.modes.preference_rows import dpo_rows, kto_rows
from tests.support.other_rows import assistant, user

WriteLines = Callable[[Sequence[Any]], Path]

SHORT, LONG = "yes", "yes and more of the same"


def pairs(count: int, *, longer: int) -> list[dict[str, Any]]:
    """Return pairs of which the first `longer` have the longer answer chosen."""
    return [
        {"prompt": f"question {n}", "chosen": (SHORT, LONG)[n < longer], "rejected": (LONG, SHORT)[n < longer]}
        for n in range(count)
    ]


def labels(good: list[str], bad: list[str]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"question {n}", "completion": text, "label": label}
        for label, texts in ((True, good), (False, bad))
        for n, text in enumerate(texts)
    ]


def check(path: Path, form: RowForm, base: Path | None = None) -> Report:
    return check_dataset(path, form=form, tokenizer_dir=base, max_length=100)


def said(report: Report) -> str:
    return "\n".join(": ".join(line) for line in summary_lines(report))


@pytest.mark.parametrize(
    ("longer", "count", "note"),
    [
        (15, 20, "the chosen answer is the longer one in 75% of the pairs (+10.5 characters on average)"),
        (4, 20, "the chosen answer is the shorter one in 80% of the pairs (-12.6 characters on average)"),
        (14, 20, ""),
        (19, 19, ""),
    ],
)
def test_pairs_that_length_tells_apart(longer: int, count: int, note: str, write_lines: WriteLines) -> None:
    text = said(check(write_lines(pairs(count, longer=longer)), dpo_rows()))
    assert note in text
    assert ("a model could learn length alone" in text) is bool(note)
    assert f"Pairs: {count}; the chosen answer is the longer one in {longer / count:.0%}" in text


def test_with_a_base_lengths_are_learned_tokens(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    report = check(write_lines(pairs(20, longer=20)), dpo_rows(), tokenizer_dir)
    assert report.pairs is not None
    assert report.tokens is not None
    assert (report.pairs.unit, report.pairs.chosen_longer, report.examples) == ("tokens", 20, 20)
    assert 0 < report.pairs.mean_difference < len(LONG) - len(SHORT)
    rated = check(write_lines([{"prompt": "q", "output": t, "reward": len(t)} for t in (LONG, SHORT, "a")]), dpo_rows())
    assert rated.pairs is not None
    assert (rated.pairs.unit, rated.pairs.count) == ("characters", 3)


def test_the_length_of_a_call_and_of_reasoning_counts_without_a_base(write_lines: WriteLines) -> None:
    call = {"function": {"name": "find", "arguments": {"q": "x"}}, "type": "function"}
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    chosen, rejected = assistant(None, tool_calls=[call]), assistant("no", reasoning_content="I think")
    rows = [{"prompt": f"q{n}", "chosen": [chosen], "rejected": [rejected], "tools": tools} for n in range(2)]
    report = check(write_lines(rows), dpo_rows()).pairs
    assert report is not None
    assert report.mean_difference == len('find{"q": "x"}') - len("noI think")


def test_pairs_that_are_there_both_ways_round(write_lines: WriteLines) -> None:
    rows = [*pairs(3, longer=3), {"prompt": "question 1", "chosen": f" {SHORT}", "rejected": LONG}]
    report = check(write_lines(rows), dpo_rows())
    assert report.pairs is not None
    assert report.pairs.contradicted == 2
    assert "Warning: pairs that are there the other way round, too: 2" in said(report)
    assert "the other way round" not in said(check(write_lines(pairs(3, longer=1)), dpo_rows()))


def test_the_pairs_of_a_ranking_do_not_contradict_each_other(write_lines: WriteLines) -> None:
    ranked = [("best", "second"), ("second", "worst"), ("best", "worst")]
    rows = [{"prompt": f"q{n}", "chosen": good, "rejected": bad} for n in range(2) for good, bad in ranked]
    report = check(write_lines(rows), dpo_rows())
    assert report.pairs is not None
    assert (report.pairs.count, report.pairs.contradicted, report.warnings) == (6, 0, [])


@pytest.mark.parametrize(
    "names",
    [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected")],
)
@pytest.mark.parametrize("kind", [lambda score: score, str], ids=["numbers", "texts, as of a CSV"])
def test_scores_beside_the_sides(names: tuple[str, str], kind: Callable[[Any], Any], write_lines: WriteLines) -> None:
    scores = [(kind(a), kind(b)) for a, b in [(5, 1), (3.0, 3), (1, 2), (2, 11), (None, 2), ("a", 3)]]
    rows = [row | dict(zip(names, both, strict=True)) for row, both in zip(pairs(6, longer=3), scores, strict=True)]
    text = said(check(write_lines(rows), dpo_rows()))
    assert "Note: pairs whose answers have the same score: 1 of 6" in text
    assert "Warning: the chosen answer has the lower score" in text
    assert "wrong way round (2 rows, the first is row 3)" in text


def test_a_margin_below_zero_says_that_the_sides_are_swapped(write_lines: WriteLines) -> None:
    rows = [row | {"margin": by} for row, by in zip(pairs(5, longer=3), (2.5, 0, -1, "-0.5", None), strict=True)]
    text = said(check(write_lines(rows), dpo_rows()))
    assert "Note: pairs whose answers have the same score: 1 of 5" in text
    assert "wrong way round (2 rows, the first is row 3)" in text


def test_the_counts_of_labels(write_lines: WriteLines) -> None:
    report = check(write_lines(labels([LONG, LONG, "x"], [SHORT, "x", "x"])), kto_rows())
    assert report.labels is not None
    found = report.labels
    assert (found.good, found.bad, found.prompts, found.one_sided, found.contradicted) == (3, 3, 3, 0, 1)
    assert report.rewards is None
    assert "Labels: 3 good and 3 bad answers; mean length 16.3 and 1.7 characters" in said(report)
    assert "Warning: answers that are good in one row and bad in another, of one prompt: 1" in said(report)


def test_prompts_with_one_kind_of_answer_are_counted(write_lines: WriteLines) -> None:
    report = check(write_lines(labels([LONG] * 5, [SHORT] * 2)), kto_rows())
    assert "Note: prompts with good or with bad answers alone: 3 of 5" in said(report)


@pytest.mark.parametrize(("good", "bad", "which"), [(LONG, SHORT, "longer"), (SHORT, LONG, "shorter"), ("a", "b", "")])
def test_labels_that_length_tells_apart(good: str, bad: str, which: str, write_lines: WriteLines) -> None:
    text = said(check(write_lines(labels([good] * 20, [bad] * 20)), kto_rows()))
    assert (f"good answers are {which} than bad ones" in text) is bool(which)
    assert ("length alone" in text) is bool(which)


@pytest.mark.parametrize(
    ("rows", "form", "message"),
    [
        (labels([LONG, SHORT], []), kto_rows(), "every answer is good.*add bad answers, or set mode to sft"),
        (labels([], [LONG, SHORT]), kto_rows(), "every answer is bad.*add good answers$"),
        (
            [{"prompt": "q", "output": text, "reward": 4} for text in "ab"],
            kto_rows(threshold=4),
            r"every answer is good.*raise threshold \(4\)",
        ),
        (
            [{"prompt": "q", "output": text, "reward": 3} for text in "ab"],
            kto_rows(threshold=4),
            r"every answer is bad.*lower threshold \(4\)",
        ),
    ],
    ids=["good", "bad", "rated high", "rated low"],
)
def test_a_file_of_one_label_is_refused(rows: list[Any], form: RowForm, message: str, write_lines: WriteLines) -> None:
    with pytest.raises(DatasetRefused, match=message):
        check(write_lines(rows), form)


def test_sides_that_are_the_same_tokens_are_refused(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    ended = {"prompt": "q", "chosen": "yes<|im_end|>", "rejected": "yes"}
    cut = {"prompt": "q", "chosen": "word " * 200 + "a", "rejected": "word " * 200 + "b"}
    path = write_lines([*pairs(3, longer=1), ended, cut])
    report = examine_dataset(path, form=dpo_rows(), tokenizer_dir=tokenizer_dir, max_length=100)
    assert [(refused.reason, refused.rows) for refused in report.refusals] == [("EqualSides", [4]), ("EqualSides", [5])]
    assert "`chosen` and `rejected` are the same tokens" in report.refusals[0].rule
    assert report.refusals[1].rule == "`chosen` and `rejected` are the same up to max_length"
    assert report.kept == 3


def test_the_sample_marks_both_sides(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    for base in (tokenizer_dir, None):
        text = render_sample(write_lines(pairs(2, longer=2)), form=dpo_rows(), tokenizer_dir=base)
        above, chosen, rejected = re.split("chosen:\n|rejected:\n", text)
        assert above.startswith("Row 1; the marked part is learned:")
        assert f">>>{LONG}" in chosen
        assert f">>>{SHORT}" in rejected
        assert LONG not in rejected
        assert text.count("question 0") == 2


def test_the_sample_says_whether_an_answer_is_good(write_lines: WriteLines) -> None:
    path = write_lines(labels([LONG], [SHORT]))
    for row, kind in ((1, "good"), (2, "bad")):
        text = render_sample(path, form=kto_rows(), tokenizer_dir=None, row=row)
        assert text.startswith(f"Row {row}, a {kind} answer; the marked part is learned:")


def test_several_turns_of_which_the_last_is_labelled(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    chat = [user("q"), assistant("first"), user("and?"), assistant("second")]
    path = write_lines([{"messages": chat, "label": True}, {"messages": chat[:2], "label": False}])
    text = render_sample(path, form=kto_rows(), tokenizer_dir=tokenizer_dir)
    assert ">>>second" in text
    assert ">>>first" not in text
