"""The proof between a bfloat16 server and a float32 training."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.test_proof import adapters, bf16_server, proof_of

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
