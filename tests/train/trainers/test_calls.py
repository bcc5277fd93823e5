"""Answers that are generated to see whether tools are called: by the very policy that training has."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_tuning.data.call_sample import Asked
from llm_tuning.data.rows import Conversation
from llm_tuning.data.token_rows import TokenRows, TokenSequence
from llm_tuning.trainers.calls import CallScorer, generate
from llm_tuning.trainers.micro_batches import MicroBatches, pad
from llm_tuning.trainers.model import attach_lora, bare_base, causal_lm
from llm_tuning.trainers.policy import Policy
from tests.support.tool_rows import TOOLS, make_tool_base, requests, write_conversations, write_tool_rows
from tests.support.train_run import make_run

SIZES: dict[str, Any] = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8},
}
STOP = 7


@pytest.fixture(scope="module")
def tool_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tool_base(tmp_path_factory.mktemp("tools") / "base")


def adapted(model: Any) -> Policy:
    """A policy whose adapter changes what its base says."""
    found = attach_lora(model, rank=4, alpha=8, dropout=0.0, target_modules=["q_proj", "v_proj"], seed=0)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return Policy(found, device="cpu", dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_generated_is_likeliest_in_the_forward_pass_of_training(kind: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **MODELS[kind])
    model = AutoModelForCausalLM.from_config(config).float().requires_grad_(False)
    model.config.use_cache = False
    model.generation_config.do_sample, model.generation_config.repetition_penalty = True, 5.0
    policy = adapted(model)
    random = np.random.default_rng(0)
    asked = [
        Asked(random.integers(8, 500, length).astype(np.int32), most, [], [])
        for length, most in ((5, 12), (40, 7), (17, 12), (1, 12))
    ]
    answers = []
    for policy_of in (nullcontext, bare_base):
        with policy_of(policy.model):
            answers.append(generate(policy, asked, frozenset([STOP])))
            for one, ids in zip(asked, answers[-1], strict=True):
                assert len(ids) == one.max_tokens or STOP not in ids
                whole = np.concatenate([one.prompt, np.array(ids, dtype=np.int32)])
                learned = np.arange(len(whole)) >= len(one.prompt)
                assert policy.score(pad([TokenSequence(whole, learned)]))[1].all()
            alone = [generate(policy, [one], frozenset([STOP]))[0] for one in asked]
            assert alone == answers[-1]
    assert answers[0] != answers[1]
    assert model.generation_config.repetition_penalty == 5.0, "the base's own settings are back"


def test_generation_ends_at_a_stop_and_answers_are_cut_there() -> None:
    torch.manual_seed(0)
    policy = adapted(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).float())
    asked = [Asked(np.arange(20, 40, dtype=np.int32), 30, [], [])]
    (ids,) = generate(policy, asked, frozenset())
    assert len(ids) == 30
    stop = ids[10]
    (cut,) = generate(policy, asked, frozenset([stop]))
    assert cut == ids[: ids.index(stop)]


@pytest.fixture(scope="module")
def rows(tool_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenRows:
    words = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A helper."}]
    calls = [Conversation(each.messages, tools=TOOLS) for each in requests(held_out=True)]
    plain = [Conversation(words, tools=TOOLS)]
    return write_conversations(tmp_path_factory.mktemp("rows") / "rows", tool_base, [*calls, *plain])


def scorer_of(base: Path, rows: TokenRows, work: Path, *, rank: int = 0, world: int = 1) -> CallScorer:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    batches = MicroBatches(rows, 2048, True, "cpu", rank, world)
    return CallScorer.of(make_run(work, base), adapted(model), batches, np.arange(len(rows)))


def test_ranks_share_the_answers(tool_base: Path, rows: TokenRows, tmp_path: Path) -> None:
    shares = [list(scorer_of(tool_base, rows, tmp_path, rank=rank, world=2)._shares()) for rank in range(2)]
    alone = scorer_of(tool_base, rows, tmp_path)
    assert alone.as_dict() == {"with_calls": 12, "without_calls": 1}
    assert alone.sample is not None
    prompts = sorted(asked.prompt.tobytes() for share in shares for batch in share for asked in batch)
    assert prompts == sorted(asked.prompt.tobytes() for asked in alone.sample.asked)
    assert min(len(share) for share in shares) > 0


def test_a_base_that_has_learned_nothing_calls_nothing(tool_base: Path, rows: TokenRows, tmp_path: Path) -> None:
    scorer = scorer_of(tool_base, rows, tmp_path)
    scorer.policy.train()
    assert scorer.scores() == {"calls_parsed": 0.0, "calls_fit": 0.0, "calls_equal": 0.0, "called_anyway": 0.0}
    assert scorer.policy.training


def test_answers_that_cannot_be_generated_cost_the_scores_and_not_the_run(
    tool_base: Path, rows: TokenRows, tmp_path: Path
) -> None:
    scorer = scorer_of(tool_base, rows, tmp_path)
    causal_lm(scorer.policy.model).generate = None  # of a class that has none
    assert scorer.scores() == {}
    assert scorer.as_dict() == {
        "with_calls": 12,
        "without_calls": 1,
        "reason": "answers could not be generated (TypeError)",
    }


def test_a_template_whose_calls_cannot_be_read_is_the_reason(tool_base: Path, rows: TokenRows, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tool_base, other)
    text = "{% for m in messages %}<|im_start|>{{ m.content }}{{ m.tool_calls }}<|im_end|>{% endfor %}"
    (other / "chat_template.jinja").write_text(text)
    scorer = scorer_of(other, rows, tmp_path)
    assert scorer.scores() == {}
    said = scorer.as_dict()
    assert said is not None
    assert said["reason"].startswith("the chat template of the base: ")


def test_rows_without_tools_have_no_scores_of_calls(tool_base: Path, tmp_path: Path) -> None:
    plain = write_tool_rows(tmp_path / "rows", tool_base, requests(held_out=True), tools=False)
    scorer = scorer_of(tool_base, plain, tmp_path)
    assert scorer.scores() == {}
    assert scorer.as_dict() is None
