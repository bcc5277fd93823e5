"""Servers that a vLLM of ours cannot be made to be: other programs, gateways, keys, faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from llm_tuning.engines.vllm.probe import VllmProbe
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.proof import Proof
from llm_tuning.proof.prove import prove

TOKENS = 40
MODELS = {
    "data": [
        {"id": "base", "parent": None, "max_model_len": 4096},
        {"id": "lora", "parent": "base", "max_model_len": None},
    ]
}
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter whose training lowered every second log-probability from -2 to -3; only its probes are there."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    probe = {
        "token_ids": list(range(TOKENS)),
        "base_logprobs": [-2.0] * (TOKENS - 1),
        "tuned_logprobs": [-2.0 - t % 2 for t in range(1, TOKENS)],
        "messages": [{"role": "user", "content": "secret"}, {"role": "assistant", "content": "answer"}],
    }
    (folder / "parity.json").write_text(json.dumps({"version": 1, "dtype": "float32", "probes": [probe]}))
    return folder


def completion(body: dict[str, Any], *, shift: float = 0.0) -> httpx.Response:
    """What a right server answers."""
    tuned = body["model"] == "lora"
    scores = [None, *({str(t): {"logprob": -2.0 - t % 2 * tuned + shift}} for t in range(1, TOKENS))]
    return httpx.Response(200, json={"choices": [{"index": 0, "prompt_logprobs": scores}]})


def answers(**changed: Handler) -> Handler:
    """A right server, but for the paths in `changed`: models, completions, tokenize."""

    def handle(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rsplit("/", 1)[-1]
        if name in changed:
            return changed[name](request)
        if name == "models":
            return httpx.Response(200, json=MODELS)
        if name == "tokenize":
            return httpx.Response(200, json={"tokens": list(range(TOKENS))})
        return completion(json.loads(request.content))

    return handle


def status(code: int, **body: Any) -> Handler:
    return lambda request: httpx.Response(code, json=body)


def proof_of(adapter: Path, handler: Handler, **options: Any) -> Proof:
    return prove(VllmProbe("http://server", transport=httpx.MockTransport(handler)), adapter, **options)


def test_a_right_server_is_effective_under_the_name_lora(adapter: Path) -> None:
    assert proof_of(adapter, answers()).verdict == "effective"


def test_logits_are_not_taken_for_log_probabilities(adapter: Path) -> None:
    proof = proof_of(adapter, answers(completions=lambda r: completion(json.loads(r.content), shift=5.0)))
    assert proof.verdict == "cannot_be_proven"
    assert "--logprobs-mode" in proof.message


def test_a_server_that_ignores_the_request_for_prompt_logprobs_proves_nothing(adapter: Path) -> None:
    proof = proof_of(adapter, answers(completions=status(200, choices=[{"index": 0, "text": "x"}])))
    assert proof.verdict == "cannot_be_proven"


def test_log_probabilities_of_other_tokens_prove_nothing(adapter: Path) -> None:
    scores = [None, *({str(t + 1): {"logprob": -2.0}} for t in range(1, TOKENS))]
    proof = proof_of(adapter, answers(completions=status(200, choices=[{"index": 0, "prompt_logprobs": scores}])))
    assert proof.verdict == "cannot_be_proven"


def test_probes_longer_than_the_context_prove_nothing(adapter: Path) -> None:
    short = {"data": [MODELS["data"][0] | {"max_model_len": TOKENS}, MODELS["data"][1]]}
    proof = proof_of(adapter, answers(models=status(200, **short)))
    assert proof.verdict == "cannot_be_proven"
    assert f"context of {TOKENS} tokens" in proof.message


def test_a_server_without_tokenize_is_still_judged(adapter: Path) -> None:
    proof = proof_of(adapter, answers(tokenize=status(404)))
    assert proof.verdict == "effective"
    assert "chat template was not compared" in proof.message


def test_a_template_that_refuses_the_conversation_is_different_and_not_quoted(adapter: Path) -> None:
    proof = proof_of(adapter, answers(tokenize=status(400, error={"message": "secret"})))
    assert proof.verdict == "different"
    assert "secret" not in proof.message


def test_a_template_that_writes_the_date_is_not_compared(adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    proof = proof_of(adapter, answers(tokenize=status(200, tokens=[1])))
    assert proof.verdict == "effective"
    assert "today's date" in proof.message


def test_a_server_that_names_no_parents_takes_the_other_model_as_the_base(adapter: Path) -> None:
    flat = {"data": [{"id": "lora"}, {"id": "base"}]}
    assert proof_of(adapter, answers(models=status(200, **flat))).verdict == "effective"
    assert proof_of(adapter, answers(models=status(200, **flat)), base_name="lora").verdict == "no_effect"


def test_a_server_with_nothing_but_the_base_has_no_effect(adapter: Path) -> None:
    only = {"data": [{"id": "base", "parent": None}]}
    assert proof_of(adapter, answers(models=status(200, **only)), name="base").verdict == "no_effect"
    with pytest.raises(InputError, match="serves no adapter; it serves base"):
        proof_of(adapter, answers(models=status(200, **only)))


@pytest.mark.parametrize("path", ["models", "completions"])
def test_a_missing_key_is_bad_input(path: str, adapter: Path) -> None:
    with pytest.raises(InputError, match="--api_key_env"):
        proof_of(adapter, answers(**{path: status(401)}))


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_failing_server_is_tried_again_later(code: int, adapter: Path) -> None:
    for path in ("models", "completions"):
        with pytest.raises(TryAgain, match=f"answers with {code}: .*; see the server's log"):
            proof_of(adapter, answers(**{path: status(code, error={"message": "engine is dead"})}))


def test_a_silent_server_is_tried_again_later(adapter: Path) -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("")

    with pytest.raises(TryAgain, match="does not answer in time"):
        proof_of(adapter, answers(completions=silent))


@pytest.mark.parametrize("answer", [status(404), lambda r: httpx.Response(200, text="<html>"), status(200, data=3)])
def test_what_is_no_vllm_is_bad_input(answer: Handler, adapter: Path) -> None:
    with pytest.raises(InputError, match="give the address of a vLLM server"):
        proof_of(adapter, answers(models=answer))


def test_the_key_is_sent(adapter: Path) -> None:
    seen = set()

    def handle(request: httpx.Request) -> httpx.Response:
        seen.add(request.headers.get("Authorization"))
        return answers()(request)

    prove(VllmProbe("http://server", api_key="k", transport=httpx.MockTransport(handle)), adapter)
    assert seen == {"Bearer k"}


def test_another_adapter_is_not_proven_under_the_name_lora(adapter: Path) -> None:
    """`lora` beside another model_id is that one; two adapters of one chain are alike enough to pass for each other."""
    (adapter / "model.json").write_text(json.dumps({"model_id": "first"}))
    others = {"data": [*MODELS["data"], {"id": "second", "parent": "base"}]}
    with pytest.raises(InputError, match="serves no first; it serves base, lora, second; name one with --name"):
        proof_of(adapter, answers(models=status(200, **others)))
    assert proof_of(adapter, answers()).name == "lora"  # served alone, under no other name


@pytest.mark.parametrize(("prompt_tokens", "verdict"), [(3, "effective"), (5, "different")])
def test_the_prompt_of_an_answer_is_compared_where_the_trainer_counted_it(
    adapter: Path, prompt_tokens: int, verdict: str
) -> None:
    """No server renders the answer that it makes; tokenised as one text it may have other tokens than it is made of."""
    parity = json.loads((adapter / "parity.json").read_text())
    parity["probes"][0]["prompt_tokens"] = prompt_tokens
    (adapter / "parity.json").write_text(json.dumps(parity))
    asked = []

    def tokenize(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json={"tokens": [0, 1, 2]})

    assert proof_of(adapter, answers(tokenize=tokenize)).verdict == verdict
    assert [(len(body["messages"]), body["add_generation_prompt"]) for body in asked if "messages" in body] == [
        (1, True)
    ]


def test_a_prompt_that_no_server_makes_of_messages_is_not_compared(adapter: Path) -> None:
    """It ends with the given beginning of the answer."""
    parity = json.loads((adapter / "parity.json").read_text())
    parity["probes"][0]["prompt_tokens"] = 0
    (adapter / "parity.json").write_text(json.dumps(parity))
    proof = proof_of(adapter, answers(tokenize=status(500)))
    assert proof.verdict == "effective"
    assert "was not compared" in proof.message
