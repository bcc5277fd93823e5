"""Every verdict on a real vLLM: what is served is right or false in one way each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from llm_tuning.codes.tune_llm import main
from llm_tuning.engines.vllm.probe import VllmProbe
from llm_tuning.errors import InputError
from llm_tuning.proof import Proof
from llm_tuning.proof.prove import prove
from tests.support.lora_adapters import copy_adapter, make_adapter
from tests.support.rows import write_rows
from tests.support.tiny_base import CHAT_TEMPLATE, make_base
from tests.support.train_run import make_run
from tests.support.vllm_server import vllm_server, without_prompt_logprobs

SHORT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Folder of adapters: `good` is what a training left, the others are what may be served or expected instead."""
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(root / "good", tiny_base, b_scale=0.05)
    make_adapter(root / "zeroed", tiny_base, b_scale=0.0)
    make_adapter(root / "other", tiny_base, b_scale=0.05, seed=2)
    make_adapter(root / "barely", tiny_base, b_scale=1e-8)
    make_adapter(root / "bf16", tiny_base, b_scale=0.05, autocast=True)
    make_adapter(root / "retemplated", tiny_base, b_scale=0.05, chat_template=SHORT_TEMPLATE)
    copy_adapter(root / "good", root / "doubled", alpha_factor=2)
    other_base = make_base(root / "other-llama", seed=1)
    make_adapter(root / "of_other_base", other_base, b_scale=0.05)
    larger_base = make_base(root / "larger-llama", vocab_size=640)
    make_adapter(root / "of_larger_base", larger_base, b_scale=0.05)
    copy_adapter(root / "good", root / "without_probes")
    (root / "without_probes/parity.json").unlink()
    _train_on_four_bits(root / "four_bits", tiny_base)
    return root


def _train_on_four_bits(folder: Path, base: Path) -> None:
    """Leave what a run with model.quantization 4bit does, its probes scored on the base as it is served."""
    from llm_tuning.trainers import sft

    work = folder.with_name("run on four bits")
    write_rows(work / "rows", range(10, 50, 2))
    training = {"batch_size": 4, "learning_rate": 0.01, "epochs": 3}
    run = make_run(work, base, training=training, lora={"rank": 8, "alpha": 16}, quantization="4bit")
    sft.train(run)
    run.stage.rename(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, adapters: Path) -> Iterator[str]:
    """The base in float32 under its own name and under `impostor`, with adapters."""
    names = ("good", "zeroed", "other", "barely", "bf16", "doubled", "four_bits")
    with vllm_server(
        tmp_path_factory.mktemp("float32"),
        tiny_base,
        dtype="float32",
        adapters={name: adapters / name for name in names},
        base_names=["tiny-llama", "impostor"],
    ) as url:
        yield url


@pytest.fixture(scope="module")
def bf16_server(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, adapters: Path) -> Iterator[str]:
    """The same base in bfloat16."""
    with vllm_server(
        tmp_path_factory.mktemp("bfloat16"),
        tiny_base,
        dtype="bfloat16",
        adapters={name: adapters / name for name in ("good", "zeroed", "other")},
        base_names=["tiny-llama"],
    ) as url:
        yield url


def proof_of(url: str, adapter: Path, name: str | None = None) -> Proof:
    with closing(VllmProbe(url)) as server:
        return prove(server, adapter, name=name)


CASES = {
    # what is served under which name: (expected adapter, served name, verdict, in the message)
    "the adapter": ("good", "good", "effective", "slope 1.00, correlation 1.00"),
    "an adapter trained in bfloat16": ("bf16", "bf16", "effective", "takes effect"),
    "an adapter trained on 4 bits": ("four_bits", "four_bits", "effective", "(trained on 4 bits, served on 16)"),
    "an adapter with a zeroed B": ("good", "zeroed", "no_effect", "changes nothing"),
    "the base under the adapter's name": ("good", "impostor", "no_effect", "changes nothing"),
    "another adapter's files": ("good", "other", "different", "something else than was trained"),
    "the adapter at twice its strength": ("good", "doubled", "different", "lora_alpha"),
    "an adapter that was barely trained": ("barely", "barely", "too_small_to_tell", "train longer"),
    "another adapter for a barely trained one": ("barely", "good", "different", "far more than was trained"),
    "another chat template": ("retemplated", "good", "different", "chat template differs"),
    "another template and a zeroed B": ("retemplated", "zeroed", "no_effect", "Also, the chat template differs"),
    "another base": ("of_other_base", "good", "different", "the base itself answers differently"),
    "another base without effect": ("of_other_base", "zeroed", "no_effect", "Also, the base itself answers"),
    "a base with fewer tokens": ("of_larger_base", "good", "different", "serves another base"),
    "no probes": ("without_probes", "good", "cannot_be_proven", "has no parity.json"),
}


@pytest.mark.parametrize("case", CASES)
def test_each_false_serving_gets_its_verdict(case: str, server: str, adapters: Path) -> None:
    adapter, name, verdict, words = CASES[case]
    proof = proof_of(server, adapters / adapter, name)
    print(f"{case}: {proof.as_json()}")
    assert proof.verdict == verdict, proof
    assert words in proof.message


def test_float32_numbers_agree_to_six_digits(server: str, adapters: Path) -> None:
    numbers = proof_of(server, adapters / "good", "good").numbers
    assert numbers is not None
    assert numbers.noise < 5e-6
    assert numbers.residual < 5e-6
    assert numbers.trained_effect > 0.05


def test_a_server_without_prompt_logprobs_proves_nothing(server: str, adapters: Path) -> None:
    with without_prompt_logprobs(server) as gateway:
        proof = proof_of(gateway, adapters / "good", "good")
        retemplated = proof_of(gateway, adapters / "retemplated", "good")
    assert proof.verdict == "cannot_be_proven"
    assert "prompt_logprobs is not allowed here" in proof.message
    assert retemplated.verdict == "different"


def test_the_command_prints_json_and_exits_0_only_when_effective(
    server: str, adapters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prove", "--url", f"{server}/v1/", "--adapter", str(adapters / "good"), "--json"]
    assert main(command) == 0  # the name comes from model.json
    assert json.loads(capsys.readouterr().out)["verdict"] == "effective"
    assert main([*command, "--name", "zeroed"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "no_effect"


def test_a_name_that_is_not_served_is_bad_input(server: str, adapters: Path) -> None:
    with pytest.raises(InputError, match="it serves tiny-llama, impostor, good"):
        proof_of(server, adapters / "good", "goood")


def test_conversations_render_alike_at_trainer_and_server(server: str, adapters: Path) -> None:
    assert CHAT_TEMPLATE != SHORT_TEMPLATE
    templates = proof_of(server, adapters / "good", "good").templates
    assert (templates.checked, templates.different) == (6, 0)
