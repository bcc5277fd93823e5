"""The whole check: what is refused and how it is said, what the report holds, what lands on disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_tuning.data.check import DatasetRefused, check_dataset
from llm_tuning.data.reading import data_hash
from llm_tuning.data.report import Report
from llm_tuning.data.token_rows import TokenRows
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.modes import MODES

WriteLines = Callable[[Sequence[Any]], Path]
GOOD = [{"prompt": f"question {i}", "output": f"answer {i}", "reward": i / 10} for i in range(8)]
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def check(path: Path, tokenizer_dir: Path | None, mode: str = "sft", max_length: int = 200, **more: Any) -> Report:
    return check_dataset(path, form=MODES[mode].rows, tokenizer_dir=tokenizer_dir, max_length=max_length, **more)


def lines(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def with_bad(**change: Any) -> list[dict[str, Any]]:
    """Good rows around a third one with `change`; a change to ... removes the field."""
    bad = {name: value for name, value in (GOOD[2] | change).items() if value is not ...}
    return [*GOOD[:2], bad, *GOOD[3:]]


BAD_INPUT: dict[str, tuple[str, bytes, list[str]]] = {
    # issue's case: (mode, file, parts of the message: place, rule, fix)
    "empty file": ("sft", b"", ["rows.json", "is empty", "at least 2 rows"]),
    "not JSON": ("sft", b"prompt: q\noutput: a\n", ["line 1, column 1", "is not JSON", "save it as"]),
    "broken array": ("sft", b'[{"prompt": "q"},\n {"prompt" 1}]', ["line 2, column 12", "row 2", "not valid JSON"]),
    "broken line": ("sft", lines(GOOD[0], b'{"prompt" 1}\n', GOOD[1]), ["row 2", "line 2, column 11", "NotJson"]),
    "one object": ("sft", json.dumps({"version": 1, "data": GOOD}, indent=1).encode(),
                   ["is one JSON object that holds lists of rows", "name the list: ", "rows.json#data"]),
    "one object on a line": ("sft", json.dumps({"rows": GOOD}).encode(), ["is one JSON object", "rows.json#rows"]),
    "one object without a list": ("sft", b'{"a": 1}', ["row 1", "none of the shapes of sft rows; it has a"]),
    "invalid UTF-8 in an array": ("sft", b'[{"prompt": "\xe9"}]', ["line 1, byte 13", "not UTF-8", "save it as UTF-8"]),
    "invalid UTF-8 in a line": ("sft", lines(*GOOD, b'{"prompt": "\xe9"}\n'), ["row 9", "not UTF-8", "as UTF-8"]),
    "truncated last line": ("sft", lines(*GOOD)[:-12], ["row 8", "line 8", "cut off", "copy or write the file again"]),
    "truncated array": ("sft", json.dumps(GOOD).encode()[:-3], ["row 8", "cut off"]),
    "mixed shapes": ("sft", lines(*GOOD, {"text": "t"}), ["row 9", "has the shape text", "MixedShapes", "one shape"]),
    "missing prompt": ("sft", lines(*with_bad(prompt=...)), ["row 3", "`prompt` is missing", "MissingField", "add it"]),
    "missing output": ("sft", lines(*with_bad(output=...)), ["row 3", "`output` is missing", "add it"]),
    "misspelled prompt": ("sft", lines(*with_bad(prompt=..., promt="q")), ["row 3", "mean to call `promt` `prompt`?"]),
    "misspelled reward": ("ppo", lines(*with_bad(reward=..., rewrd=1)), ["row 3", "mean to call `rewrd` `reward`?"]),
    "all misspelled": ("sft", lines(*[{"promt": "q", "outptu": "a"}] * 3), ["rows 1, 2 and 3", "call `promt` `prompt"]),
    "a field twice": ("sft", lines(*GOOD, b'{"prompt": "a", "prompt": "b", "output": "c"}\n'),
                      ["row 9: `prompt` is given twice in one object (DuplicateField)", "keep one of them"]),
    "a field twice in every row": ("sft", lines(*[b'{"prompt": "a", "\\u0070rompt": "b", "output": "c"}\n'] * 3),
                                   ["rows 1, 2 and 3: `prompt` is given twice"]),
    "a field twice in an array": ("sft", json.dumps(GOOD).encode()[:-1] + b', {"output": "a", "output": "a"}]',
                                  ["row 9: `output` is given twice"]),
    "a field twice in a message": (
        "sft",
        lines({"messages": [U, A]}, b'{"messages": [{"role": "user", "role": "assistant", "content": "q"}]}\n'),
        ["row 2: `role` is given twice"],
    ),
    "null prompt": ("sft", lines(*with_bad(prompt=None)), ["row 3", "`prompt` is null", "give a text"]),
    "null output": ("sft", lines(*with_bad(output=None)), ["row 3", "`output` is null", "NullField"]),
    "empty prompt": ("sft", lines(*with_bad(prompt="")), ["row 3", "`prompt` is empty", "EmptyField"]),
    "empty output": ("sft", lines(*with_bad(output="  ")), ["row 3", "`output` is empty", "give a text"]),
    "non-string output": ("sft", lines(*with_bad(output=7)), ["row 3", "`output` must be text, got a number"]),
    "NaN reward": ("ppo", lines(*with_bad(reward=float("nan"))), ["row 3", "`reward`", "finite", "got NaN"]),
    "infinite reward": ("ppo", lines(*with_bad(reward=float("inf"))), ["row 3", "finite number", "RewardNotFinite"]),
    "textual reward": ("ppo", lines(*with_bad(reward="0.5")), ["row 3", "got text", "without quotes"]),
    "missing reward": ("ppo", lines(*with_bad(reward=...)), ["row 3", "`reward` is missing", "number in every row"]),
    "null reward": ("ppo", lines(*with_bad(reward=None)), ["row 3", "`reward` is null"]),
    "constant reward": ("ppo", lines(*[row | {"reward": 2} for row in GOOD]), ["reward is 2 in every row", "sft"]),
    "wrong role": ("sft", lines({"messages": [U, A]}, {"messages": [{"role": "x", "content": "q"}, A]}),
                   ["row 2", "messages[0]", "must be one of", "UnknownRole"]),
    "no assistant turn": ("sft", lines({"messages": [U, A]}, {"messages": [U]}), ["row 2", "no assistant turn"]),
    "empty messages": ("sft", lines({"messages": [U, A]}, {"messages": []}), ["row 2", "an empty list"]),
    "a single row": ("sft", lines(GOOD[0]), ["holds 1 usable row", "needs at least 2"]),
    "a single row in an array": ("ppo", json.dumps(GOOD[:1]).encode(), ["holds 1 usable row", "needs at least 2"]),
    "no rows": ("sft", b"[]", ["holds 0 usable rows", "needs at least 2"]),
    "every row too long": ("sft", lines(*[{"prompt": "x" * 900, "output": "a"} for _ in range(3)]),
                           ["rows 1, 2 and 3", "nothing is left to learn", "200 tokens", "raise max_length"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_says_where_rule_and_fix(tokenizer_dir: Path, tmp_path: Path, case: str) -> None:
    mode, content, parts = BAD_INPUT[case]
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(DatasetRefused) as error:
        check(path, tokenizer_dir, mode, out=tmp_path / "out")
    message = str(error.value)
    assert all(part in message for part in [str(path), *parts]), message
    assert not error.value.report.ok
    assert not (tmp_path / "out").exists()
    assert len(message.splitlines()) == 1  # one sentence for one mistake


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"question": "a", "answer": "b"}, ["row 1", "`question` and `answer`", "prompt=question,output=answer"]),
        ({"prompt": "a", "outptu": "b"}, ["row 1", "`output` is missing", "did you mean to call `outptu`"]),
        ({"prompt": 3, "output": "b"}, ["row 1", "`prompt` must be text"]),
    ],
    ids=["other names", "misspelt", "a number"],
)
def test_the_fault_of_the_only_row_is_named(tmp_path: Path, row: Any, parts: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(row))
    with pytest.raises(DatasetRefused) as error:
        check(path, None)
    assert all(part in str(error.value) for part in parts)
    path.write_text(json.dumps(row, indent=1))
    if "prompt" not in row or "output" not in row:
        with pytest.raises(DatasetRefused, match="is one JSON object, not a list of rows"):
            check(path, None)


TOOLS = [{"type": "function", "function": {"name": "now"}}]
ASKED = {"role": "user", "content": "a"}
CALLED = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": "{now}"}}]}


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"tools": TOOLS, "messages": [ASKED, CALLED]}, ["row 1, messages[1].tool_calls[0]", "NotACall"]),
        ({"functions": [{"name": "now"}], "messages": [ASKED, CALLED]}, ["row 1, messages[1]", "NotACall"]),
        ({"tools": TOOLS, "messages": [ASKED]}, ["row 1", "NoAssistantTurn"]),
        ({"tools": TOOLS, "prompt": "a"}, ["row 1", "`output` is missing"]),
        ({"messages": [{"name": "bob", **ASKED}]}, ["row 1", "NoAssistantTurn"]),
        ({"messages": [ASKED], "choices": [{"index": 0, "message": CALLED}]}, ["row 1", "`choices`", "Ambiguous"]),
    ],
    ids=["a call", "an older call", "no answer", "no output", "a name first", "choices beside it"],
)
def test_the_only_row_may_hold_lists_of_its_own(tmp_path: Path, row: Any, parts: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(row))
    with pytest.raises(DatasetRefused) as error:
        check(path, None)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert len(error.value.problems) == 1


def test_the_only_row_over_several_lines_is_one_object_and_not_a_list_of_its_tools(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"tools": TOOLS, "messages": [ASKED, CALLED]}, indent=1))
    with pytest.raises(DatasetRefused, match=r"is one JSON object, not a list of rows; write a JSON array of rows"):
        check(path, None)


@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_larger_than_is_read_at_once_is_named_too(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "rows.json"
    rows = [{"prompt": "question " * 100_000, "output": "a"}] * 80
    path.write_text(json.dumps({"data": rows}, indent=indent))
    with pytest.raises(
        DatasetRefused, match=r"is one JSON object that holds lists of rows; name the list: \S+#data"
    ) as error:
        check(path, None)
    assert len(error.value.problems) == 1


def test_names_of_fields_that_cannot_be_printed_are_escaped(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*[{"prompt": "a", "output": "b", "\ud83d\n": 1}] * 2))
    summary = check(path, None).summary()
    assert "fields that are not used: \\ud83d\\n" in summary
    summary.encode()


def test_a_missing_file_and_a_folder_are_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, rule in ((tmp_path / "none.json", "does not exist"), (tmp_path / "empty", "holds no file of rows")):
        with pytest.raises(InputError, match=rule) as error:
            check(path, tokenizer_dir)
        assert str(path) in str(error.value)


def test_all_mistakes_are_reported_together_and_bounded(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    rows = [*GOOD, *[{"prompt": "q", "output": None}] * 3000, {"prompt": "", "output": "a"}, {"text": "t"}]
    with pytest.raises(DatasetRefused) as error:
        check(write_lines(rows), tokenizer_dir)
    assert [problem.where.partition(", ")[2] for problem in error.value.problems] == [
        "3,000 rows (9, 10, 11, 12, 13, ...)",
        "row 3009",
        "row 3010",
    ]
    assert len(str(error.value)) < 1000
    assert error.value.report.refusals[0].rows == list(range(9, 29))


def test_refused_rows_are_skipped_when_asked(tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    path = write_lines(with_bad(output=None))
    report = check(path, tokenizer_dir, "ppo", skip_invalid_rows=True, out=tmp_path / "out")
    assert (report.rows, report.kept, report.refused, report.ok) == (8, 7, 1, True)
    assert any("1 refused row is skipped" in warning for warning in report.warnings)
    assert TokenRows.open(tmp_path / "out").row_numbers.tolist() == [1, 2, 4, 5, 6, 7, 8]


def test_skipping_cannot_leave_a_run_without_rows(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    with pytest.raises(DatasetRefused, match="`output` is null") as error:
        check(write_lines([GOOD[0], *[GOOD[1] | {"output": None}] * 3]), tokenizer_dir, skip_invalid_rows=True)
    assert "holds 1 usable row" in str(error.value)


@pytest.mark.parametrize("mode", ["sft", "ppo"])
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_rows_and_report_are_the_same_from_every_format(
    tokenizer_dir: Path, tmp_path: Path, kind: str, mode: str
) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(GOOD), path)
    else:
        path.write_bytes(lines(*GOOD) if kind == "jsonl" else json.dumps(GOOD).encode())
    report = check(path, tokenizer_dir, mode, out=tmp_path / "out")
    assert (report.format, report.shape, report.rows, report.kept) == (kind, "prompt/output", 8, 8)
    assert report.data_hash == data_hash(path)
    assert report.tokens is not None
    assert report.tokens.lengths is not None
    rows = TokenRows.open(tmp_path / "out")
    assert report.tokens.lengths.total == rows.lengths.sum()
    assert report.tokens.lengths.max == rows.lengths.max()
    assert report.tokens.learned == rows.learned_counts.sum()
    assert report.tokens.rows_learning_end == 8
    assert report.warnings == []
    assert rows.messages(3) == [{"role": "user", "content": "question 3"}, {"role": "assistant", "content": "answer 3"}]
    assert (rows.numbers.tolist() == [row["reward"] for row in GOOD]) == (mode == "ppo")
    assert report.ignored_fields == ([] if mode == "ppo" else ["reward"])
    assert (report.rewards is not None) == (mode == "ppo")


def test_truncation_is_counted(tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    whole = check(write_lines([*GOOD, {"prompt": "q", "output": "word " * 50}]), tokenizer_dir, max_length=1000)
    assert whole.tokens is not None
    assert whole.tokens.lengths is not None
    longest = whole.tokens.lengths.max
    report = check(tmp_path / "rows.jsonl", tokenizer_dir, max_length=longest - 5, out=tmp_path / "out")
    assert report.tokens is not None
    assert (report.tokens.truncated.count, report.tokens.truncated.rows, report.tokens.tokens_lost) == (1, [9], 5)
    assert report.tokens.lengths == whole.tokens.lengths
    assert report.tokens.rows_learning_end == 8
    assert TokenRows.open(tmp_path / "out").lengths.max() == longest - 5
    assert any("row 9 cut at max_length" in warning for warning in report.warnings)


def test_duplicates_are_named(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    report = check(write_lines([*GOOD, GOOD[2], GOOD[5]]), tokenizer_dir)
    assert (report.duplicates.count, report.duplicates.rows) == (2, [9, 10])
    assert any("rows 9 and 10 equal to an earlier row" in warning for warning in report.warnings)


@pytest.mark.parametrize("template", ["{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}", None])
def test_answers_that_will_not_stop_are_warned_of(
    tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path, template: str | None
) -> None:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    if template is None:
        del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    report = check(write_lines(GOOD), folder)
    assert any("answers will not stop" in warning for warning in report.warnings)
    assert report.tokens is not None
    assert report.tokens.rows_learning_end == 0
    assert report.template_source == ("plain_chat.jinja" if template is None else "tokenizer_config.json")
    assert any("plain one" in note for note in report.notes) == (template is None)


def test_without_a_base_rows_are_checked_and_the_report_says_what_was_not(write_lines: WriteLines) -> None:
    report = check(write_lines(GOOD), None)
    assert (report.kept, report.tokens, report.template_hash) == (8, None, None)
    assert any("not checked: that takes a base (model.path)" in note for note in report.notes)


def test_a_base_without_tokenizer_json_is_checked_by_the_given_encoder(
    tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    path = write_lines(GOOD)
    report = check(path, folder)
    assert report.tokens is None
    assert any("checked in the run" in note for note in report.notes)
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        check(path, folder, out=tmp_path / "out")
    with_encoder = check(path, folder, out=tmp_path / "out", encoder=encoder)
    assert with_encoder.tokens == check(path, tokenizer_dir).tokens


def test_text_rows_are_checked(tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path) -> None:
    report = check(write_lines([{"text": "one"}, {"text": "two"}]), tokenizer_dir, out=tmp_path / "out")
    assert (report.shape, report.kept) == ("text", 2)
    assert TokenRows.open(tmp_path / "out").text(1) == "two"


def test_a_disk_that_takes_no_rows_is_named_and_nothing_is_left(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    path = write_lines(GOOD)
    (path.parent / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        check(path, tokenizer_dir, out=path.parent / "file" / "rows")
    if os.path.exists("/dev/full"):
        out = path.parent / "rows"
        out.mkdir()
        (out / "source.jsonl").symlink_to("/dev/full")
        with pytest.raises(TryAgain, match="no space is left in"):
            check(path, tokenizer_dir, out=out)
        assert not out.exists()


def test_a_stop_request_ends_the_check_and_leaves_nothing(
    tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    import signal

    from llm_tuning.core.stopping import stop_on_signals
    from llm_tuning.errors import TryAgain

    path = write_lines(GOOD)
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TryAgain, match="checking the dataset"):
            check(path, tokenizer_dir, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reports_and_errors_never_hold_dataset_text(tokenizer_dir: Path, write_lines: WriteLines) -> None:
    secret = "sECRET"
    rows = [
        {"prompt": secret, "output": secret},
        {"prompt": secret, "output": [secret]},
        {"prompt": {"x": secret}, "output": secret},
        {"prompt": [{"role": secret, "content": secret}], "output": secret},
        secret,
        {"prompt": "q", "output": secret},
    ]
    report = check(write_lines(rows), tokenizer_dir, skip_invalid_rows=True)
    assert (report.kept, report.refused) == (2, 4)
    with pytest.raises(DatasetRefused) as error:
        check(write_lines(rows), tokenizer_dir)
    assert secret not in report.model_dump_json() + report.summary() + str(error.value)


def test_a_template_that_the_sandbox_stops_is_one_problem_and_not_one_for_each_row(
    tokenizer_dir: Path, write_lines: WriteLines, tmp_path: Path
) -> None:
    folder = shutil.copytree(tokenizer_dir, tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.__class__.__mro__ }}{% endfor %}")
    rows = [{"messages": [U | {"content": f"question {number}"}, A]} for number in range(560)]
    with pytest.raises(InputError, match="may not do") as refused:
        check(write_lines(rows), folder)
    assert len(refused.value.problems) == 1
    assert refused.value.problems[0].field == "model.path"
