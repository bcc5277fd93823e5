"""CSV and TSV as other programs write them: separators, quotes, line ends, and the rows that are none."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llm_tuning.data.cells import read_cells
from llm_tuning.data.check import check_dataset, examine_dataset
from llm_tuning.data.faults import RowFault
from llm_tuning.data.files import rows as limits
from llm_tuning.data.reading import DatasetFile, data_hash
from llm_tuning.errors import InputError
from llm_tuning.modes.mode import Mode
from llm_tuning.modes.ppo import PPO
from llm_tuning.modes.sft import SFT

TEXTS = [
    "plain",
    'a "quoted" word',
    "comma, semicolon; tab\t|",
    "two\nlines",
    "dos\r\nlines",
    "é 🙂 \u2028 x",
    "[1",
    "=A1",
]
ROWS = [{"prompt": f"{i} {text}", "output": text, "note": ""} for i, text in enumerate(TEXTS)]
WANT = [{"prompt": row["prompt"], "output": row["output"]} for row in ROWS]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    return list(DatasetFile(path))


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_pythons_writer_writes_is_read_whatever_the_files_name(
    tmp_path: Path, delimiter: str, end: str, quoting: Any, encoding: str
) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ROWS[0], delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writeheader()
    writer.writerows(ROWS)
    path = written(tmp_path / "rows.txt", text.getvalue().encode(encoding))
    dataset = DatasetFile(path)
    assert list(dataset) == list(enumerate(WANT, 1))
    assert dataset.format == ("tsv" if delimiter == "\t" else "csv")
    assert dataset.numbering == "positions, from 1"
    assert dataset.sha256 == data_hash(path)


@pytest.mark.parametrize("sep", [",", "\t", ";"])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("end", [{}, {"compression": "gzip"}])
def test_what_pandas_writes_is_read(tmp_path: Path, sep: str, index: bool, end: dict[str, Any]) -> None:
    frame = pd.DataFrame({"prompt": TEXTS, "output": TEXTS, "reward": [0.5, None, *range(len(TEXTS) - 2)]})
    frame.to_csv(tmp_path / "rows", sep=sep, index=index, **end)
    rows = [row for _, row in read(tmp_path / "rows")]
    assert [(row["prompt"], row["output"]) for row in rows] == list(zip(TEXTS, TEXTS, strict=True))
    rewards = [read_cells(row, ["reward"]).get("reward") for row in rows]
    assert rewards == [0.5, None, *map(float, range(len(TEXTS) - 2))]
    assert ("Unnamed: 0" in rows[0]) is index


@pytest.mark.parametrize("seed", range(30))
def test_any_table_comes_back_as_it_was(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    delimiter = chance.choice([",", ";", "\t"])
    names = ["prompt", "output", "the third one"][: chance.randint(2, 3)]
    pieces = ["a", "b", " ", "\n", "\r\n", '"', ",", ";", "\t", "é", "'", "{", "5"]
    table = [["".join(chance.choices(pieces, k=chance.randint(0, 12))) for _ in names] for _ in range(40)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=chance.choice(["\n", "\r\n"])).writerows([names, *table])
    want = [{name: cell for name, cell in zip(names, row, strict=True) if cell} for row in table]
    got = read(written(tmp_path / "rows.csv", text.getvalue()))
    assert [row for _, row in got] == [row for row in want if row]


def test_a_line_that_names_the_separator_is_obeyed(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.csv", "sep=;\r\nprompt;output\r\na;b\r\n")) == [
        (1, {"prompt": "a", "output": "b"})
    ]


def test_a_column_that_is_the_whole_row_stands_alone(tmp_path: Path) -> None:
    assert read(written(tmp_path / "a.csv", 'text\n"one, two"\nthree\n')) == [
        (1, {"text": "one, two"}),
        (2, {"text": "three"}),
    ]


def test_rows_are_counted_and_faults_name_the_line(tmp_path: Path) -> None:
    text = 'prompt,output\n"two\nlines",a\n\nb\nc,d,e\n,\nf,"g" h\ni,j\nk,"never closed\nl,m\n'
    text = text.replace("i,j", "\n".join(["i,j"] * 4))
    (one, first), (two, short), (three, long), (five, quote), (six, last), *_, (ten, open_quote) = read(
        written(tmp_path / "a.csv", text)
    )
    assert (one, two, three, five, six, ten) == (1, 2, 3, 5, 6, 10)
    assert (first, last) == ({"prompt": "two\nlines", "output": "a"}, {"prompt": "i", "output": "j"})
    assert [fault.at for fault in (short, long, quote, open_quote)] == ["line 5", "line 6", "line 8", "line 13"]
    assert short.rule == "has 1 cells, and the first line names 2 columns"
    assert "behind a closing quote" in quote.rule
    assert "never closed" in open_quote.rule


def test_bytes_that_are_no_text_refuse_their_row(tmp_path: Path) -> None:
    content = b"prompt,output\na,caf\xe9\nb,c\nd,e\0f\n"
    latin, good, nul = [row for _, row in read(written(tmp_path / "a.csv", content))]
    assert good == {"prompt": "b", "output": "c"}
    assert isinstance(latin, RowFault)
    assert (latin.rule, latin.at) == ("is not UTF-8", "line 2, byte 6 of it")
    assert isinstance(nul, RowFault)
    assert (nul.rule, nul.at) == ("holds a NUL byte", "line 4")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("Where is my invoice?,In the account.\nCan I pay by card?,Yes.\n", ["without the names of its columns"]),
        ("1,2\n3,4\n5,6\n", ["without the names of its columns"]),
        ("prompt,output,prompt\na,b,c\n", ["line 1", "names two columns `prompt`"]),
        ("prompt|output\na|b\nc|d\n", ["separated by |", "by commas, tabs or semicolons"]),
        ("prompt;output,more;x\na;b,c;d\n", ["may be columns separated by"]),
        ("Dear Sir,\nthis is a letter.\nIt has lines, and commas.\n", ["is not JSON"]),
        ("one word\nand another line\n", ["is not JSON", "CSV with a header row"]),
        ("- prompt: a\n  output: b\n", ["is not JSON"]),
        ("a,b\rc,d\re,f\r", ["line ends"]),
        (b"pr\xe9nom,b\nc,d\n", ["line 1", "is not UTF-8"]),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes | str, parts: list[str]) -> None:
    message = refusal(written(tmp_path / "a.csv", content))
    assert all(part in message for part in parts), message


def test_a_quote_that_swallows_the_file_ends_at_the_limit_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_ROW_BYTES", 200)
    lines = ["prompt,output", "a,b", 'c,"d', *["x" * 50] * 10]
    assert "line 3: holds a row 2 of more than" in refusal(written(tmp_path / "a.csv", "\n".join(lines)))


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("text", "number"),
    [("5", 5.0), ("-0.5", -0.5), ("+1e3", 1000.0), (".5", 0.5), (" 7 ", 7.0), ("2.", 2.0)],
)
def test_a_reward_is_a_number_and_a_prompt_a_text(tmp_path: Path, text: str, number: float) -> None:
    [(_, row)] = read(written(tmp_path / "a.csv", f"prompt,output,reward\n{text},{text},{text}\n"))
    assert row == {"prompt": text, "output": text, "reward": text}
    assert read_cells(row, ("reward", "rating")) == {"prompt": text, "output": text, "reward": number}


@pytest.mark.parametrize("text", ["1,5", "nan", "inf", "0x10", "1_000", "five", "true", "1 000", "\u0665", "5%"])
def test_what_is_no_number_is_refused_where_one_is_needed(text: str) -> None:
    with pytest.raises(RowFault, match="`reward` must be a finite number, got text") as fault:
        read_cells({"reward": text}, ("reward",))
    assert fault.value.fix.startswith("write a number such as 0.5")


@pytest.mark.parametrize("mode", [SFT, PPO])
def test_a_csv_is_checked_as_the_same_rows_are_in_json(tmp_path: Path, mode: Mode) -> None:
    rows = [{"prompt": f"question {i}", "output": str(i), "reward": i / 2} for i in range(5)]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    pd.DataFrame(rows).to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    reports = [
        check_dataset(tmp_path / name, form=mode.rows, tokenizer_dir=None, max_length=64)
        for name in ("rows.csv", "rows.jsonl")
    ]
    for report in reports:
        assert (report.kept, report.rewards and report.rewards.max) == (5, 2.0 if mode is PPO else None)


def test_a_column_of_lists_is_json_or_refused(tmp_path: Path) -> None:
    good = pd.DataFrame({"messages": [json.dumps(CHAT)] * 2})
    good.to_csv(tmp_path / "good.csv")
    assert check_dataset(tmp_path / "good.csv", form=SFT.rows, tokenizer_dir=None, max_length=64).shape == "messages"
    pd.DataFrame({"messages": [CHAT] * 2}).to_csv(tmp_path / "bad.csv")
    report = examine_dataset(tmp_path / "bad.csv", form=SFT.rows, tokenizer_dir=None, max_length=64)
    [problem] = report.problems
    assert problem.where.endswith("bad.csv, rows 1 and 2, first at line 2")
    assert problem.rule == "`messages` of a CSV must be a list in JSON, got text (NotMessages)"
    assert "to_json(path, orient='records', lines=True)" in problem.fix
    for text in ("5", '{"a": 1}', "[" * 100_000):
        with pytest.raises(RowFault, match="must be a list in JSON"):
            read_cells({"messages": text}, ())


def test_a_list_of_messages_in_a_field_of_text_is_refused() -> None:
    with pytest.raises(RowFault, match="`prompt` holds a list of messages as text"):
        read_cells({"prompt": json.dumps(CHAT), "completion": "a"}, ())
    row = {"prompt": "[1, 2]", "completion": '["a"] is a list'}
    assert read_cells(row, ()) == row
