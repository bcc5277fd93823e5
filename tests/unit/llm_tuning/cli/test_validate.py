"""`validate` as a user runs it: quick, without torch, report and exit code for people and machines."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.cli import validate
from llm_tuning.errors import InputError
from tests.support.tiny_base import make_tokenizer

ROWS = [{"prompt": f"question {i}", "output": f"answer {i}", "reward": i} for i in range(5)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    make_tokenizer(path)
    return path


def dataset(rows: list[Any]) -> str:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "rows.jsonl"


def run(*flags: str) -> int:
    parser = argparse.ArgumentParser()
    validate.add_arguments(parser)
    return validate.run(parser.parse_args(flags))


def test_people_get_an_aligned_report(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dataset_path", dataset(ROWS), "--llm_path", str(base), "--tuning_mode", "ppo") == 0
    out = capsys.readouterr().out
    assert "Dataset    rows.jsonl (JSON Lines, rows are prompt/output, row numbers are line numbers)" in out
    assert "Rows       5 read, 5 kept, 0 refused" in out
    assert "End token  <|im_end|>: learned in 5 of 5 rows" in out
    assert "Rewards    min 0, mean 2, max 4, std 1.414" in out
    assert "\x1b" not in out
    assert "question" not in out  # no sample unless asked for: this is no terminal


def test_a_folder_that_is_no_base_model_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_tokenizer(tmp_path / "adapter")
    assert run("--dataset_path", dataset(ROWS), "--llm_path", str(tmp_path / "adapter")) == 0
    assert "adapter has no config.json: it is no base model" in capsys.readouterr().out


def test_machines_get_one_json_object(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset_path", dataset(ROWS), "--llm_path", str(base), "--json", "--show_sample"]
    assert run(*flags) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert (report["ok"], report["rows"], report["kept"], report["problems"]) == (True, 5, 5, [])
    assert report["tokens"]["lengths"]["p50"] > 0
    assert ">>>answer 0<|im_end|><<<" in captured.err


def test_a_refused_dataset_raises_for_people_and_is_a_report_for_machines(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset_path", dataset([*ROWS, {"prompt": "q"}]), "--llm_path", str(base)]
    with pytest.raises(InputError, match="row 6: `output` is missing"):
        run(*flags)
    out = capsys.readouterr().out
    assert "6 read, 5 kept, 1 refused" in out
    assert "is missing" not in out, "the error says it, and once is enough"

    assert run(*flags, "--json") == 64
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["problems"] == [
        {
            "where": "rows.jsonl, row 6",
            "rule": "`output` is missing (MissingField)",
            "fix": "add it",
            "field": "dataset.path",
        }
    ]
    assert report["refusals"][0]["rows"] == [6]
    assert run(*flags, "--skip_invalid_rows") == 0
    assert "Refused    row 6: `output` is missing (MissingField); add it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "where", "rule"),
    [
        (["--llm_path", "nowhere"], "model nowhere", "does not exist"),
        (["--max_length", "7"], "training.max_length", "at least 8, got 7"),
    ],
)
def test_bad_flags_are_named(flags: list[str], where: str, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset(ROWS)
    with pytest.raises(InputError) as error:
        run("--dataset_path", path, *flags)
    (problem,) = error.value.problems
    assert problem.where == where
    assert rule in problem.rule
    capsys.readouterr()
    assert run("--dataset_path", path, *flags, "--json") == 64
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert rule in report["problems"][0]["rule"]


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"is quantised \(gptq\).*with --quantization 4bit the run"),
        ({"text_config": {"quantization_config": {"load_in_4bit": True}}}, r"is quantised \(bitsandbytes\)"),
        ({"vocab_size": 600}, "says vocab_size 600, but the embeddings have 512 rows"),
        ({"architectures": ["GPT2LMHeadModel"]}, r"is GPT2LMHeadModel, and vLLM serves no LoRA .*docs/families.md"),
        ({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, r"is not trained by itself here; .*\(Qwen2.5\)"),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused_with_the_rows(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], want: str
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | config))
    tensor = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [512, 1], "data_offsets": [0, 1024]}}
    header = json.dumps(tensor).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(1024))
    flags = ["--dataset_path", dataset(ROWS), "--llm_path", str(folder)]
    with pytest.raises(InputError, match=want):
        run(*flags)
    assert run(*flags, "--json") == 64
    captured = capsys.readouterr().out
    assert '"ok": false' in captured


def test_what_is_no_base_is_refused_with_the_rows_that_are_wrong(base: Path) -> None:
    with pytest.raises(InputError) as error:
        run("--dataset_path", dataset([*ROWS, {"prompt": "q"}]), "--llm_path", "Qwen/Qwen3-0.6B")
    said = str(error.value)
    assert "row 6: `output` is missing" in said
    assert (
        "model Qwen/Qwen3-0.6B: does not exist; it looks like a name on the hub: use --llm_path hf://Qwen/Qwen3-0.6B"
        in said
    )


def test_rows_to_evaluate_on_are_checked_by_the_same_names(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = [{"question": row["prompt"], "output": row["output"]} for row in ROWS]
    Path("eval.jsonl").write_text(json.dumps({"question": "another", "output": "one"}))
    flags = ["--dataset_path", dataset(named), "--llm_path", str(base), "--columns", "prompt=question"]
    assert run(*flags, "--eval_dataset_path", "eval.jsonl") == 0
    out = capsys.readouterr().out
    assert "1 read, 1 kept, 0 refused" in out
    with pytest.raises(InputError, match=r"all with a prompt of the training rows.* leave --eval_dataset_path out"):
        run(*flags, "--eval_dataset_path", "rows.jsonl")


def test_a_given_row_is_shown(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--dataset_path", dataset(ROWS), "--llm_path", str(base), "--show_sample", "4")
    assert "Row 4; the marked part is learned:" in capsys.readouterr().out


RATED = [{"prompt": f"question {i % 2}", "output": f"answer {i}", "reward": i} for i in range(6)]


def test_settings_that_decide_the_rows_are_flags_here_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = dataset(RATED)
    rated = ("--dataset_path", path, "--tuning_mode")
    assert run(*rated, "dpo") == 0
    assert "Pairs      6 of 2 prompts" in capsys.readouterr().out
    assert run(*rated, "dpo", "--dpo_min_difference", "4", "--dpo_max_pairs_per_prompt", "1") == 0
    assert "Pairs      2 of 2 prompts" in capsys.readouterr().out
    assert run(*rated, "kto", "--kto_threshold", "4") == 0
    assert "Labels     2 good and 4 bad answers" in capsys.readouterr().out
    with pytest.raises(InputError, match="no rating is said to be good"):
        run(*rated, "kto")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("ppo", "--kto_threshold", "4"),
            "--kto_threshold: is set but mode is not kto; use --tuning_mode kto",
        ),
        (("dpo", "--dpo_max_pairs_per_prompt", "0"), "dpo.max_pairs_per_prompt: must be at least 1, got 0"),
        (("dpo", "--dpo_min_difference", "x"), "dpo.min_difference: must be a valid number"),
    ],
)
def test_settings_of_another_mode_and_wrong_ones_are_refused(flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        run("--dataset_path", dataset(RATED), "--tuning_mode", *flags)
