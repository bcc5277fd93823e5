"""A base whose server would see other token ids than its training is refused by the data check, with a remedy.

Rows are tokenised by tokenizer.json; a vLLM server has what transformers builds from the folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.data.check import DatasetRefused, check_dataset
from llm_tuning.data.report import Report
from llm_tuning.modes import MODES
from llm_tuning.run import rebuilt, served_ids
from llm_tuning.run.rebuilt import rebuild_apart, rebuild_here
from llm_tuning.run.served_ids import ids_as_served
from tests.support.tokenizer_layouts import ALIKE, OTHERWISE, make_layout

CHATS = [{"prompt": f"What is the loop number {i}?", "output": f"It is a loop, {i}."} for i in range(6)]
TEXTS = [{"text": f"A loop of {i} statements."} for i in range(6)]


def check(base: Path, rows: list[dict[str, Any]] = CHATS, *, cache: Path | None = None, apart: bool = False) -> Report:
    path = base.parent / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compare = ids_as_served(base, cache=cache, apart=apart)
    assert compare is not None
    return check_dataset(path, form=MODES["sft"].rows, tokenizer_dir=base, max_length=400, check_base=compare)


def refusal(base: Path, rows: list[dict[str, Any]] = CHATS) -> str:
    with pytest.raises(DatasetRefused) as refused:
        check(base, rows)
    (problem,) = refused.value.problems
    assert problem.field == "model.path"
    return str(problem)


@pytest.mark.parametrize("name", ALIKE)
def test_a_base_that_is_read_as_it_is_passes(tmp_path: Path, name: str) -> None:
    report = check(make_layout(tmp_path / "base", ALIKE[name]))
    assert report.ok
    assert not [line for line in report.warnings if "token ids" in line]


@pytest.mark.parametrize("name", OTHERWISE)
def test_a_base_that_is_built_from_its_class_is_refused_and_the_remedy_is_right(tmp_path: Path, name: str) -> None:
    base = make_layout(tmp_path / "base", OTHERWISE[name])
    said = refusal(base)
    assert str(base / "tokenizer_config.json") in said.replace(": tokenizer_config", "/tokenizer_config")
    assert "gives other token ids than tokenizer.json" in said
    assert 'set "tokenizer_class": "PreTrainedTokenizerFast"' in said

    remedied = make_layout(tmp_path / "remedied", OTHERWISE[name], tokenizer_class="PreTrainedTokenizerFast")
    assert check(remedied).ok


def test_the_refusal_names_a_row_of_the_data_set_where_one_differs(tmp_path: Path) -> None:
    plain = [{"prompt": "Which loop?", "output": f"The {word} one."} for word in ("first", "last", "other")]
    numbered = [*plain, {"prompt": "How many?", "output": "There are 1234567."}]
    base = make_layout(tmp_path / "base", OTHERWISE["smollm 2"])
    assert "of row 4)" in refusal(base, numbered)
    assert "of the text '12345 and" in refusal(base, plain)  # a prompt at the server may have digits all the same


def test_a_key_of_the_configuration_that_contradicts_tokenizer_json_is_named_with_both_ways_out(tmp_path: Path) -> None:
    said = refusal(make_layout(tmp_path / "base", ALIKE["llama 3"], split_special_tokens=True))
    assert "`split_special_tokens` contradicts tokenizer.json" in said
    assert "save_pretrained" in said


def test_rows_of_text_are_compared_with_the_special_tokens_around_them(tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", ALIKE["a text begins with <s>"])
    assert check(base, TEXTS).ok
    assert rebuild_here(base, ["A loop"], True).ids[0][0] == 0


def test_a_tokenizer_that_transformers_does_not_load_is_a_warning(tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", ALIKE["llama 3"], tokenizer_class="T5Tokenizer")
    report = check(base)
    assert [line for line in report.warnings if "does not load its tokenizer" in line]


@pytest.mark.parametrize(
    ("program", "seconds", "what"),
    [("sleep 60", 0.2, "took longer than 0.2 s"), ("kill -9 $$", 60, "was ended by signal 9")],
)
def test_a_comparison_that_was_stopped_says_nothing_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, seconds: float, what: str
) -> None:
    """On a busy machine, or short of memory: the server will start all the same."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec sh -c '{program}'\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(rebuilt, "TIMEOUT_SECONDS", seconds)
    base = make_layout(tmp_path / "base", next(iter(ALIKE.values())))
    (warning,) = [said for said in check(base, apart=True).warnings if "could not be compared" in said]
    assert what in warning
    assert "will not start" not in warning


def test_what_was_equal_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, cache = make_layout(tmp_path / "base", ALIKE["llama 3"]), tmp_path / "cache" / "ids.json"
    asked = []
    monkeypatch.setattr(served_ids, "rebuild_here", lambda *request: asked.append(1) or rebuild_here(*request))
    assert check(base, cache=cache).ok
    assert check(base, cache=cache).ok
    assert len(asked) == 1
    assert check(base, [*CHATS, {"prompt": "Why?", "output": "Because."}], cache=cache).ok
    config = base / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    assert check(base, cache=cache).ok
    assert len(asked) == 3


def test_a_process_of_its_own_gives_the_same_ids(tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", OTHERWISE["smollm 2"])
    texts = ["12345", "你好 <|end|> 😀"]
    assert rebuild_apart(base, texts, False) == rebuild_here(base, texts, False)


def test_a_base_without_tokenizer_json_has_nothing_to_compare(tmp_path: Path) -> None:
    base = make_layout(tmp_path / "base", ALIKE["llama 3"])
    (base / "tokenizer.json").unlink()
    assert ids_as_served(base, cache=None) is None
