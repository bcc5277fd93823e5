"""Rows of one rated answer each through the whole check: pairs of one prompt, written as rows of two sequences."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data import compared, rated_rows
from llm_tuning.data.check import DatasetRefused, check_dataset
from llm_tuning.data.report import Report, summary_lines
from llm_tuning.data.rows import RowForm
from llm_tuning.data.sample import render_sample
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.modes.preference_rows import dpo_rows
from llm_tuning.run.setting import Rows
from tests.support.other_rows import assistant, user

WriteLines = Callable[[Sequence[Any]], Path]

ROWS = [
    {"prompt": f"question {n}", "output": f"answer {'very ' * rank}good {n}", "reward": rank}
    for n in range(4)
    for rank in range(3)
]


def check(path: Path, base: Path | None, out: Path | None = None, form: RowForm | None = None, **more: Any) -> Report:
    return check_dataset(path, form=form or dpo_rows(), tokenizer_dir=base, max_length=100, out=out, **more)


def read_pairs(folder: Path) -> list[tuple[str, str, str, float]]:
    """Return prompt, chosen, rejected and number of each row."""
    rows = TokenRows.open(folder)
    found = []
    for index, row in enumerate(rows):
        sides = [rows.messages(index, side) for side in (0, 1)]
        assert len(row.sequences) == 2
        prompt, (chosen, rejected) = sides[0][:-1], [side[-1]["content"] for side in sides]  # type: ignore[index]
        assert sides[1][:-1] == prompt  # type: ignore[index]
        found.append((prompt[-1]["content"], chosen, rejected, row.number))
    return found


def test_the_answers_of_a_prompt_become_pairs(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    report = check(write_lines(ROWS), tokenizer_dir, tmp_path / "rows")
    pairs = read_pairs(tmp_path / "rows")
    assert sorted(pairs) == sorted(
        (f"question {n}", f"answer {'very ' * high}good {n}", f"answer {'very ' * low}good {n}", high - low)
        for n in range(4)
        for high, low in ((2, 0), (2, 1), (1, 0))
    )
    rows = TokenRows.open(tmp_path / "rows")
    assert (report.rows, report.kept, report.examples, report.prompts) == (12, 12, 12, 4)
    assert report.pairs is not None
    assert (report.pairs.count, report.pairs.prompts, report.pairs.chosen_longer) == (12, 4, 12)
    assert report.tokens is not None
    assert report.tokens.lengths is not None
    assert report.tokens.lengths.total == rows.lengths.sum()
    assert report.tokens.learned == rows.learned_counts.sum()
    assert report.tokens.sequences == 24
    assert rows.count_prompts() == 4
    planned = Rows.of(report)
    assert planned is not None
    assert (planned.count, planned.tokens, planned.sequences) == (12, rows.lengths.sum(), 24)
    first = [ROWS[number - 1] for number in rows.row_numbers]
    assert [row["output"] for row in first] == [chosen for _, chosen, _, _ in pairs]
    assert not (tmp_path / "rows" / rated_rows.ANSWERS).exists()


def test_each_pair_is_tokenised_as_a_pair_of_one_row_is(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines
) -> None:
    check(write_lines(ROWS), tokenizer_dir, tmp_path / "rated")
    given = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for prompt, chosen, rejected, _ in read_pairs(tmp_path / "rated")
    ]
    check(write_lines(given), tokenizer_dir, tmp_path / "given")
    rated, pairs = TokenRows.open(tmp_path / "rated"), TokenRows.open(tmp_path / "given")
    for one, other in zip(rated, pairs, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.learned.tolist() == other.learned.tolist()
        assert one.lengths == other.lengths
    assert [rated.prompt_tokens(0, side) for side in (0, 1)] == [pairs.prompt_tokens(0, side) for side in (0, 1)]
    assert rated.prompts is not None
    assert pairs.prompts is not None
    assert rated.prompts.tolist() == pairs.prompts.tolist()


def test_the_rows_are_the_same_in_any_order(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    files = []
    for name, rows in (("one", ROWS), ("other", random.Random(0).sample(ROWS, len(ROWS)))):
        check(write_lines(rows), tokenizer_dir, tmp_path / name)
        files.append([(tmp_path / name / f"{column}.bin").read_bytes() for column in ("input_ids", "numbers")])
    assert files[0] == files[1]


def test_the_widest_pairs_up_to_the_limit(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    form = dpo_rows(min_difference=2, max_pairs_per_prompt=1)
    check(write_lines(ROWS), tokenizer_dir, tmp_path / "rows", form)
    assert [number for *_, number in read_pairs(tmp_path / "rows")] == [2.0] * 4


def test_prompts_of_messages_and_completions(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, user("q"), assistant("a"), user("and?")]
    rows = [
        {"prompt": given, "completion": [assistant(text)], "rating": rating}
        for given in (prompt, prompt[1:])
        for text, rating in (("good", 1), ("bad", 0))
    ]
    report = check(write_lines(rows), tokenizer_dir, tmp_path / "rows")
    assert report.pairs is not None
    assert (report.pairs.count, report.pairs.prompts) == (2, 2)
    assert {pair[1:] for pair in read_pairs(tmp_path / "rows")} == {("good", "bad", 1.0)}


def test_prompts_that_differ_by_white_space_alone_are_named(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    spaced = [row | {"prompt": f" {row['prompt']}\n"} if row["reward"] == 2 else row for row in ROWS]
    report = check(write_lines(spaced), tokenizer_dir)
    assert report.pairs is not None
    assert (report.pairs.count, report.pairs.prompts, report.pairs.spaced) == (4, 8, 4)
    assert any("are another one but for white space: 4;" in warning for warning in report.warnings)
    alike = check(write_lines(ROWS), tokenizer_dir)
    assert alike.pairs is not None
    assert alike.pairs.spaced == 0
    assert not alike.warnings


def test_what_makes_no_pair_is_said(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    alone = [{"prompt": f"alone {n}", "output": "a", "reward": n} for n in range(3)]
    tied = [{"prompt": "tied", "output": text, "reward": 1} for text in ("a", "b")]
    twice = [{"prompt": "question 0", "output": "answer good 0", "reward": 0.5}]
    for base in (tokenizer_dir, None):
        report = check(write_lines([*ROWS, *alone, *tied, *twice]), base)
        said = "\n".join(": ".join(line) for line in summary_lines(report))
        assert "Pairs: 12 of 8 prompts; the chosen answer is the longer one in 100%" in said
        assert "prompts that make no pair: 4 of 8 (3 have one answer, 1 have ratings that are too near)" in said
        assert "answers that are rated several times, and differently: 1; their mean is taken" in said
    assert "characters" in said


@pytest.mark.parametrize(
    ("rows", "form", "said"),
    [
        ([row | {"reward": 1} for row in ROWS], dpo_rows(), "no two answers of one prompt have rewards that differ"),
        (ROWS[::3], dpo_rows(), "makes no pair"),
        (ROWS, dpo_rows(min_difference=3), "differ by at least min_difference \\(3\\)"),
        (ROWS[:2], dpo_rows(), "makes 1 pair"),
        ([row | {"output": "the same"} for row in ROWS], dpo_rows(), "makes no pair"),
    ],
    ids=["constant rewards", "one answer a prompt", "too near", "one pair", "one answer, rated often"],
)
@pytest.mark.parametrize("with_base", [True, False])
def test_a_file_without_pairs_is_refused(  # noqa: PLR0917
    tokenizer_dir: Path,
    tmp_path: Path,
    write_lines: WriteLines,
    rows: list[Any],
    form: RowForm,
    said: str,
    with_base: bool,
) -> None:
    with pytest.raises(DatasetRefused, match=said):
        check(write_lines(rows), tokenizer_dir if with_base else None, tmp_path / "rows" if with_base else None, form)
    assert not (tmp_path / "rows").exists()


def test_answers_that_are_cut_alike_make_no_pair(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    rows = [{"prompt": "q", "output": "same " * 200 + str(n), "reward": n} for n in range(3)]
    with pytest.raises(DatasetRefused, match="makes no pair"):
        check(write_lines(rows), tokenizer_dir, tmp_path / "rows", dpo_rows())
    assert not (tmp_path / "rows").exists()


def test_a_row_without_a_reward_names_both_ways(write_lines: WriteLines) -> None:
    with pytest.raises(
        DatasetRefused, match=r"`reward` is missing.*write \{prompt, chosen, rejected\}; set mode to sft"
    ):
        check(write_lines([{"prompt": "q", "output": "a"}] * 2), None)


def test_two_prompts_of_one_key_are_never_paired(
    tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rated_rows, "prompt_identity", lambda conversation: 7)
    rows = [{"prompt": f"question {n % 2}", "output": f"a {n}", "reward": n} for n in range(4)]
    report = check(write_lines(rows), tokenizer_dir, tmp_path / "rows")
    assert sorted(read_pairs(tmp_path / "rows")) == [
        ("question 0", "a 2", "a 0", 2.0),
        ("question 1", "a 3", "a 1", 2.0),
    ]
    assert report.examples == 2


def test_rows_to_evaluate_on_are_paired_apart(tokenizer_dir: Path, tmp_path: Path, write_lines: WriteLines) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    others = [row | {"prompt": row["prompt"].replace("question", "other")} for row in ROWS[:6]]
    write_lines([*others, *ROWS[:3]]).rename(evaluation)
    report = check(write_lines(ROWS), tokenizer_dir, tmp_path / "rows", evaluation=evaluation)
    rows = TokenRows.open(tmp_path / "rows")
    assert (len(rows), rows.evaluation_from) == (12 + 9, 12)
    training, held_out = rows.hold_out(0.1, 0)
    assert (len(training), len(held_out)) == (12, 6)
    assert report.evaluation is not None
    assert report.evaluation.evaluated == 6
    assert report.evaluation.pairs is not None
    assert report.evaluation.pairs.in_training == 3


def test_rows_to_evaluate_on_without_a_pair_are_refused(tmp_path: Path, write_lines: WriteLines) -> None:
    evaluation = tmp_path / "evaluation.jsonl"
    write_lines([{"prompt": "p", "output": "a", "reward": 1}]).rename(evaluation)
    with pytest.raises(DatasetRefused, match="makes no pair to evaluate on"):
        check(write_lines(ROWS), None, evaluation=evaluation)


def test_the_sample_says_what_a_rated_row_is(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    text = render_sample(write_lines(ROWS[1:]), form=dpo_rows(), tokenizer_dir=tokenizer_dir)
    assert "(reward " in text
    assert "makes pairs with the other answers of its prompt" in text


def test_keys_are_those_of_the_contents() -> None:
    from llm_tuning.data.rows import Conversation

    one = Conversation([user("q"), assistant(" a ")], learn_from=1)
    assert compared.content_key(one) == compared.content_key(Conversation([user("q"), assistant("a")]))
    assert compared.prompt_identity(one) == compared.prompt_identity(Conversation([user("q")], learn_from=1))
    assert compared.prompt_identity(one) != compared.prompt_identity(Conversation([user("q ")], learn_from=1))
