"""The proof between a bfloat16 server and a float32 training, and of a server with another tokenizer."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from llm_tuning.engines.vllm.probe import VllmProbe
from llm_tuning.proof.prove import prove
from tests.engine.test_proof import adapters, bf16_server, proof_of
from tests.support.lora_adapters import make_adapter
from tests.support.tiny_base import make_base
from tests.support.vllm_server import vllm_server

__all__ = ["adapters", "bf16_server"]  # fixtures of the tests below


@pytest.mark.parametrize(("name", "verdict"), [("good", "effective"), ("zeroed", "no_effect"), ("other", "different")])
def test_a_bfloat16_server_is_judged_against_a_float32_training(
    name: str, verdict: str, bf16_server: str, adapters: Path
) -> None:
    proof = proof_of(bf16_server, adapters / "good", name)
    print(proof.as_json())
    assert proof.verdict == verdict, proof
    assert proof.numbers is not None
    assert proof.numbers.noise > 1e-4  # it really computed in bfloat16


def test_the_proof_tells_another_tokenizer_from_another_template(tmp_path: Path) -> None:
    """The probes' ids are those of tokenizer.json, as every run tokenises; the server has what its class makes."""
    base = make_base(tmp_path / "tiny-llama")
    adapter = make_adapter(tmp_path / "good", base, b_scale=0.05)
    # The server's tokenizer is built without this split, as SmolLM2's is without that of its digits.
    file, config = base / "tokenizer.json", base / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"String": "e"}, "behavior": "Isolated", "invert": False}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tokenizer["pre_tokenizer"]]}
    file.write_text(json.dumps(tokenizer))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    _retokenise(adapter / "parity.json", Tokenizer.from_file(str(file)))

    with (
        vllm_server(
            tmp_path / "server", base, dtype="float32", adapters={"good": adapter}, base_names=["tiny-llama"]
        ) as url,
        closing(VllmProbe(url)) as server,
    ):
        proof = prove(server, adapter, name="good")
    assert proof.verdict == "different"
    assert proof.templates.different == 0
    assert proof.templates.other_ids == proof.templates.texts == proof.templates.checked
    assert "tokenizer gives other token ids for the same text" in proof.message
    assert "--chat-template" not in proof.message


def _retokenise(parity: Path, tokenizer: Tokenizer) -> None:
    """Give the probes the ids of tokenizer.json; their log-probabilities are of no matter here."""
    content = json.loads(parity.read_text())
    for probe in content["probes"]:
        ids = tokenizer.encode(probe["rendered"], add_special_tokens=False).ids
        probe.update(token_ids=ids, learned=[0] * len(ids))
        probe.update(dict.fromkeys(("base_logprobs", "tuned_logprobs"), [-1.0] * (len(ids) - 1)))
    parity.write_text(json.dumps(content))
