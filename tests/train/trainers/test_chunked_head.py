"""The chunked head against a full log-softmax, values and gradients, on the models of several families."""

from __future__ import annotations

import pytest
import torch
from transformers import CohereConfig, Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from llm_tuning.errors import InputError
from llm_tuning.trainers.chunked_head import (
    CHUNK_TOKENS,
    chunked_kl,
    chunked_logprobs,
    output_head,
    output_states,
)

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


def _linear_head(vocabulary: int = 53, hidden: int = 8) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(hidden, vocabulary, dtype=torch.float64).requires_grad_(False)


@pytest.mark.parametrize("count", [0, 1, CHUNK_TOKENS - 1, CHUNK_TOKENS, CHUNK_TOKENS + 1, 3 * CHUNK_TOKENS + 7])
def test_chunked_log_probs_and_gradients_equal_a_full_log_softmax(count: int):
    head = _linear_head()
    hidden = torch.randn(count, 8, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(53, (count,)), torch.randn(count, dtype=torch.float64)

    want = head(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (want_gradient,) = torch.autograd.grad((want * upstream).sum(), hidden)
    got = chunked_logprobs(head, hidden, targets)
    (got_gradient,) = torch.autograd.grad((got * upstream).sum(), hidden)

    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_gradient, want_gradient)
    with torch.no_grad():
        assert torch.equal(chunked_logprobs(head, hidden, targets), got), "the same with and without gradients"


def test_chunked_kl_equals_that_of_torch_distributions():
    head = _linear_head()
    policy, start = torch.randn(2, CHUNK_TOKENS + 5, 8, dtype=torch.float64)
    want = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=head(policy)), torch.distributions.Categorical(logits=head(start))
    )
    torch.testing.assert_close(chunked_kl(head, policy, start), want)


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
    hidden, targets = output_states(model, ids, labels)
    with torch.no_grad():
        got = chunked_logprobs(output_head(model), hidden, targets)
    torch.testing.assert_close(got, want)


def test_a_model_that_does_something_unknown_after_its_head_is_refused():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).requires_grad_(False)
    forward = model.forward

    def scaled(**inputs: object) -> object:
        output = forward(**inputs)
        output.logits = output.logits * 1.5
        return output

    model.forward = scaled
    with pytest.raises(InputError, match="whose way from hidden states to logits ppo does not know"):
        output_head(model)


def test_a_head_that_trains_is_refused():
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    with pytest.raises(InputError, match=r"lora\.targetModules: names the output layer"):
        output_head(model)
