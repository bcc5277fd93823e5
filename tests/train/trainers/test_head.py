"""The chunked head against a full log-softmax, values and gradients, on the models of several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llm_tuning.errors import InputError
from llm_tuning.run.devices import positions_at_a_time
from llm_tuning.trainers.head import Head, find_head
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.policy import Policy

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "gemma2 (capped logits)": Gemma2Config(**SIZES, final_logit_softcapping=0.05),
    "cohere (scaled logits)": CohereConfig(**SIZES, logit_scale=7.0),
    "granite (divided logits)": GraniteConfig(**SIZES, logits_scaling=0.2),
    "gpt2 (tied head)": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2),
}


VOCABULARY = 80_000
AT_A_TIME = positions_at_a_time(VOCABULARY, "cpu")


def make_head(vocabulary: int = VOCABULARY, hidden: int = 8, **kind: float) -> Head:
    torch.manual_seed(0)
    return Head(torch.randn(vocabulary, hidden), torch.randn(vocabulary), **kind)


@pytest.mark.parametrize("count", [0, 1, AT_A_TIME - 1, AT_A_TIME, AT_A_TIME + 1, 2 * AT_A_TIME + 7])
def test_log_probs_and_gradients_in_chunks_equal_a_full_log_softmax(count: int):
    check_against_log_softmax(make_head(), count)


@pytest.mark.parametrize("kind", [{"scale": 0.3}, {"cap": 1.5}, {"scale": 2.0, "cap": 0.7}], ids=str)
def test_a_scale_and_a_cap_are_in_the_log_probs_and_in_the_gradients(kind: dict[str, float]):
    check_against_log_softmax(make_head(vocabulary=53, **kind), 20)


def check_against_log_softmax(head: Head, count: int) -> None:
    hidden = torch.randn(count, 8, requires_grad=True)
    targets, upstream = torch.randint(len(head.weight), (count,)), torch.randn(count)

    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    want = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (want_gradient,) = torch.autograd.grad((want * upstream).sum(), hidden)
    got = head.logprobs(hidden, targets)
    (got_gradient,) = torch.autograd.grad((got * upstream).sum(), hidden)

    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-3, atol=1e-4)
    scored, right = head.score(hidden, targets)
    assert torch.equal(scored, got), "the same with and without gradients"
    assert torch.equal(right, logits.argmax(-1) == targets)


def test_the_kl_in_chunks_equals_that_of_torch_distributions():
    head = make_head()
    policy, start = torch.randn(2, AT_A_TIME + 5, 8)
    want = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=head(policy)), torch.distributions.Categorical(logits=head(start))
    )
    torch.testing.assert_close(head.kl(policy, start), want, rtol=1e-5, atol=1e-5)  # processors sum in other orders


@pytest.mark.parametrize("family", CONFIGS)
def test_output_tokens_have_the_log_probs_that_the_whole_model_gives_them(family: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval().requires_grad_(False)
    ids = torch.randint(1, 97, (3, 20))
    labels = ids.clone()
    labels[0, :5] = labels[1, :12] = labels[2, :3] = -100
    labels[2, 9:] = -100

    want = torch.stack(
        [
            model(input_ids=ids[b : b + 1]).logits[0, t - 1].log_softmax(-1)[ids[b, t]]
            for b in range(3)
            for t in range(20)
            if labels[b, t] != -100
        ]
    )
    policy = Policy(model, device="cpu", dtype=torch.float32)
    assert policy.head is not None
    torch.testing.assert_close(policy.score(MicroBatch(ids, labels))[0], want)


def doubled(model: Any) -> Any:
    """`model` with twice the logits, in a way that nobody can know."""
    forward = model.forward

    def scaled(**inputs: object) -> Any:
        output = forward(**inputs)
        output.logits = output.logits * 2
        return output

    model.forward = scaled
    return model


def test_a_model_that_does_something_unknown_after_its_head_is_asked_for_its_own_logits():
    model = doubled(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval().requires_grad_(False))
    policy = Policy(model, device="cpu", dtype=torch.float32)
    assert policy.head is None
    ids = torch.randint(1, 97, (1, 12))
    labels = ids.where(torch.arange(12) > 3, -100)
    want = model(input_ids=ids).logits[0, 3:-1].log_softmax(-1).gather(1, ids[0, 4:, None])[:, 0]
    torch.testing.assert_close(policy.logprobs(MicroBatch(ids, labels)), want)
    torch.testing.assert_close(policy.score(MicroBatch(ids, labels))[0], want)


def test_a_value_head_beside_a_model_that_does_something_unknown_is_refused():
    model = doubled(AutoModelForCausalLM.from_config(CONFIGS["llama"]).requires_grad_(False))
    with pytest.raises(InputError, match="whose way from hidden states to logits is not known"):
        Policy(model, device="cpu", dtype=torch.float32, with_values=True)


def test_a_head_that_trains_is_not_taken_for_frozen():
    assert find_head(AutoModelForCausalLM.from_config(CONFIGS["llama"])) is None
