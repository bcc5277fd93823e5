"""The model card: what a reader is told, from the manifest alone."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_tuning.models.card import write_model_card
from llm_tuning.models.manifest import Manifest


def make_manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "model_id": "faq-v1",
        "mode": "sft",
        "created_at": "2026-01-02T03:04:05Z",
        "base": {"path": "base/tiny llama", "name": "tiny llama", "weight_hash": "b" * 64},
        "configuration": {
            "training": {"epochs": 1, "learningRate": 0.0002, "maxSteps": None},
            "lora": {"rank": 16, "targetModules": "q_proj,v_proj"},
            "ppo": {"clipRange": 0.2},
        },
        "config_hash": "c" * 64,
        "dataset": {"path": "faq.json", "hash": "d" * 64, "rows": 100, "kept": 97, "refused": 3},
        "template_hash": "e" * 64,
        "metrics": {
            "source": "held_out",
            "held_out_rows": 5,
            "base": {"loss": 3.25, "perplexity": 25.79, "token_accuracy": 0.25, "reward_weighted_loglik": None},
            "start": None,
            "tuned": {"loss": 1.5, "perplexity": 4.4817, "token_accuracy": 0.625, "reward_weighted_loglik": None},
        },
        "mlflow": {"run_id": "abc123", "uri": "sqlite:///mlruns/mlflow.db", "experiment": "llm_tuning"},
        "library_versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "training": {"steps": 1200, "epochs": 1.0, "seconds": 3725.0, "tokens": 1_234_567},
        "devices": ["cuda:0"],
        "tags": ["sft"],
        "files": {"adapter_model.safetensors": "a" * 64},
    }
    return Manifest.model_validate(values | changes)


def card(tmp_path: Path, manifest: Manifest, curve: str | None = "loss_curve.png") -> str:
    write_model_card(tmp_path, manifest, curve)
    return (tmp_path / "README.md").read_text()


def test_the_card_says_what_it_was_trained_on_where_the_manifest_knows(tmp_path: Path) -> None:
    hardware = {"device": "AMD EPYC <9R14>", "precision": "fp32", "peak_memory": 3 * 2**29, "teraflops": 0.051}
    found = card(tmp_path, make_manifest(hardware=hardware))
    assert "\nHardware: AMD EPYC &lt;9R14>, fp32, peak memory 1.5 GiB, 0.051 TFLOP/s.\n" in found
    assert "Hardware" not in card(tmp_path, make_manifest()), "a manifest of 0.1"


@pytest.mark.parametrize(
    ("model", "said"), [({"quantization": "4bit"}, True), ({"quantization": "none"}, False), ({}, False)]
)
def test_four_bits_are_said(tmp_path: Path, model: dict[str, str], said: bool) -> None:
    text = card(tmp_path, make_manifest(configuration={"model": model}))
    assert (
        "| Quantisation | trained and evaluated on a base in 4 bits (NF4), to be served on the base in 16 |" in text
    ) == said


def test_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    _, front, body = card(tmp_path, make_manifest()).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "tiny llama",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "peft", "sft"],
    }
    assert body.startswith("\n# faq-v1\n")


@pytest.mark.parametrize(
    "line",
    [
        "| Loss, nats a token | 3.25 | 1.5 |",
        "| Perplexity | 25.79 | 4.482 |",
        "| Token accuracy | 0.25 | 0.625 |",
        "On 5 held-out rows",
        "1,200 optimizer steps, 1 epochs, 1,234,567 tokens in 1 h 2 min on cuda:0.",
        "![Loss curve](loss_curve.png)",
        "| training.learningRate | `0.0002` |",
        "| Rows | 100 read, 97 kept, 3 refused |",
        "| Adapter weights | `" + "a" * 64 + "` |",
        "| MLflow run | `abc123` in `llm_tuning` at `sqlite:///mlruns/mlflow.db` |",
        "bash llm_tuning/config/llm/launch_llm.sh 8000 0 'base/tiny llama' models/faq-v1",
        'AutoPeftModelForCausalLM.from_pretrained("faq-v1")',
        "peft 0.21.2, torch 2.13.0",
    ],
)
def test_a_card_says(tmp_path: Path, line: str) -> None:
    assert line in card(tmp_path, make_manifest())


def test_a_script_that_a_card_names_is_there(tmp_path: Path) -> None:
    (script,) = re.findall(r"^bash (\S+)", card(tmp_path, make_manifest()), re.MULTILINE)
    assert (Path(__file__).parents[4] / script).is_file()


def test_rows_of_the_table_without_values_are_left_out(tmp_path: Path) -> None:
    text = card(tmp_path, make_manifest())
    assert "Reward-weighted" not in text
    assert "maxSteps" not in text
    assert "ppo.clipRange" not in text


def test_a_ppo_run_from_an_adapter_shows_all_three_policies(tmp_path: Path) -> None:
    scores = [{"loss": loss, "reward_weighted_loglik": r} for loss, r in ((3.0, -0.1), (2.0, 0.0), (1.9, 0.25))]
    manifest = make_manifest(
        mode="ppo",
        start_adapter={"model_id": "faq-v0", "weight_hash": "f" * 64},
        metrics={"held_out_rows": 1234, **dict(zip(("base", "start", "tuned"), scores, strict=True))},
    )
    text = card(tmp_path, manifest)
    assert "| | Base | Start adapter | Tuned |".replace("| |", "|  |") in text
    assert "| Reward-weighted log-likelihood | -0.1 | 0 | 0.25 |" in text
    assert "On 1,234 held-out rows" in text
    assert "| Started from | `faq-v0` |" in text
    assert "| ppo.clipRange | `0.2` |" in text


def test_scores_of_tool_calls_say_of_how_many_answers_they_are(tmp_path: Path) -> None:
    scores = {"loss": 1.0, "calls_parsed": 1.0, "calls_fit": 0.9375, "calls_equal": 0.75, "called_anyway": 0.0}
    calls = {"with_calls": 16, "without_calls": 4, "not_read": 2}
    text = card(tmp_path, make_manifest(metrics={"held_out_rows": 30, "tuned": scores, "calls": calls}))
    assert "| Calls that fit their tool | 0.9375 |" in text
    assert "| Calls in place of words | 0 |" in text
    assert "Tool calls: answers generated to 16 held-out prompts with a call, 4 with words; 2 recorded calls" in text
    assert "Tool calls" not in card(tmp_path, make_manifest())


def test_what_the_scores_warn_of_is_on_the_card(tmp_path: Path) -> None:
    metrics = {"held_out_rows": 30, "tuned": {"loss": 1.0}, "warnings": ["the model has learned to be longer"]}
    assert "\n\nWarning: the model has learned to be longer." in card(tmp_path, make_manifest(metrics=metrics))
    assert "Warning" not in card(tmp_path, make_manifest())


def test_without_held_out_rows_it_says_why(tmp_path: Path) -> None:
    metrics = {"source": "none", "reason": "NoHeldOutRows", "base": None, "start": None, "tuned": None}
    assert "No held-out evaluation: NoHeldOutRows." in card(tmp_path, make_manifest(metrics=metrics))


def test_an_early_stop_and_a_missing_picture_are_told(tmp_path: Path) -> None:
    training = {"steps": 5, "epochs": 0.5, "seconds": 75, "tokens": 10, "stopped_early": "target_kl reached"}
    text = card(tmp_path, make_manifest(training=training), curve=None)
    assert "in 1 min 15 s on cuda:0; stopped early: target_kl reached." in text
    assert "![" not in text


def test_values_cannot_break_the_table_or_add_markup(tmp_path: Path) -> None:
    manifest = make_manifest(dataset={"path": "a|b`c\nd.json", "hash": "d" * 64}, description="<script>x</script>\n# y")
    text = card(tmp_path, manifest)
    assert "| Dataset | `a\\|b'c d.json` |" in text
    assert "<script>" not in text
    assert "\n# y" not in text


def test_the_weights_are_hashed_while_the_manifest_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    text = card(tmp_path, make_manifest(files={}))
    assert f"| Adapter weights | `{hashlib.sha256(b'weights').hexdigest()}` |" in text


def test_a_learning_rate_left_to_the_mode_is_shown(tmp_path: Path) -> None:
    manifest = make_manifest(mode="ppo", configuration={"training": {"learningRate": None}})
    assert "| training.learningRate | `5e-05` |" in card(tmp_path, manifest)


def test_a_manifest_with_next_to_nothing_still_gives_a_card(tmp_path: Path) -> None:
    base = {"path": "base", "name": "base", "weight_hash": "b" * 64}
    text = card(tmp_path, Manifest.model_validate({"model_id": "m", "mode": "sft", "base": base}), curve=None)
    assert text.startswith("---\n")
    assert "\n# m\n" in text


def test_the_data_check_is_summed_up_without_its_rows(tmp_path: Path) -> None:
    report = {"path": "faq.json", "mode": "sft", "rows": 100, "kept": 97, "refused": 3, "shape": "prompt, output"}
    dataset = {"path": "faq.json", "hash": "d" * 64, "report": report}
    assert "| Rows | 100 read, 97 kept, 3 refused |" in card(tmp_path, make_manifest(dataset=dataset))


def test_the_card_says_what_the_adapter_changes_and_by_which_class_it_loads(tmp_path: Path) -> None:
    adapter = {"modules": ["q_proj", "v_proj"], "left_out": {"gate": "the router stays"}}
    found = card(tmp_path, make_manifest(adapter=adapter))
    assert "| Changes | LoRA on q_proj, v_proj; left out: gate (the router stays) |" in found
    assert "AutoPeftModelForCausalLM.from_pretrained" in found
    found = card(tmp_path, make_manifest(adapter=adapter | {"model_class": "AutoModelForImageTextToText"}))
    assert 'base = AutoModelForImageTextToText.from_pretrained("base/tiny llama")' in found
    assert "AutoPeftModelForCausalLM" not in found
