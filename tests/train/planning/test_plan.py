"""Steps as the trainer takes them, operations as torch counts them, and verdicts that say what would help."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llm_tuning.api.tuning import TrainingSpec
from llm_tuning.api.tuning_job import TuningJobSpec
from llm_tuning.data.check import DatasetRefused
from llm_tuning.data.splitting import split
from llm_tuning.errors import InputError
from llm_tuning.models.operations import Operations
from llm_tuning.models.shape import read_shape
from llm_tuning.planning import make_plan
from llm_tuning.planning.plan import GPUS, Plan
from llm_tuning.planning.work import run_operations
from llm_tuning.run.devices import SCORING_BYTES
from llm_tuning.run.memory import CUDA_CONTEXT_BYTES
from llm_tuning.run.setting import Rows, Steps, count_steps
from llm_tuning.trainers.batching import StepBatches
from llm_tuning.trainers.micro_batches import MicroBatch
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.policy import Policy
from tests.support.shapes import make_setting


def spec(**changed: Any) -> TuningJobSpec:
    values = {"model": {"path": "base/tiny"}, "dataset": {"path": "faq.jsonl"}, "volume": {"claimName": "tuning"}}
    return TuningJobSpec.parse({**values, **changed})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """40 rows."""
    path = tmp_path / "faq.jsonl"
    rows = [{"prompt": f"What is {i} plus {i}?", "output": f"It is {2 * i}."} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def large_base(tmp_path: Path, tiny_base: Path) -> Callable[..., Path]:
    """Headers of a Llama of 8 billion parameters; the weights are a hole in a sparse file."""

    def make(**config: Any) -> Path:
        folder = tmp_path / "large"
        folder.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).write_bytes((tiny_base / name).read_bytes())
        hidden, layers, inner, key, vocabulary = 4096, 32, 14336, 1024, 128_256
        sizes = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": inner,
            "vocab_size": vocabulary,
        }
        (folder / "config.json").write_text(json.dumps({**sizes, **config}))
        shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [vocabulary, hidden]}
        for n in range(layers):
            layer = f"model.layers.{n}"
            shapes[f"{layer}.self_attn.q_proj.weight"] = shapes[f"{layer}.self_attn.o_proj.weight"] = [hidden, hidden]
            shapes[f"{layer}.self_attn.k_proj.weight"] = shapes[f"{layer}.self_attn.v_proj.weight"] = [key, hidden]
            shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = [inner, hidden]
            shapes[f"{layer}.mlp.down_proj.weight"] = [hidden, inner]
            shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = [hidden]
        shapes |= {"model.norm.weight": [hidden], "lm_head.weight": [vocabulary, hidden]}
        header, at = {}, 0
        for name, shape in shapes.items():
            size = 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (folder / "model.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + at)
        return folder

    return make


@pytest.mark.parametrize(
    ("rows", "training", "processes"),
    [
        (19, {}, 1),
        (20, {}, 1),
        (1000, {"batch_size": 4, "gradient_accumulation_steps": 2, "epochs": 3}, 2),
        (1000, {"max_steps": 7}, 1),
        (1000, {"eval_fraction": 0.0}, 3),
    ],
)
def test_steps_are_those_that_the_trainer_takes(rows: int, training: dict[str, Any], processes: int) -> None:
    asked = TrainingSpec(**training)
    kept, held_out = split(np.arange(rows, dtype=np.uint64), asked.eval_fraction, asked.seed)
    batches = StepBatches(
        kept, batch_size=asked.batch_size, grad_accum=asked.gradient_accumulation_steps, seed=1, world=processes
    )
    found = count_steps(rows, asked, processes=processes)
    assert (found.training_rows, found.held_out) == (len(kept), len(held_out))
    assert (found.per_epoch, found.total) == (len(batches), batches.total_steps(asked.epochs, asked.max_steps))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(tiny_base: Path, checkpointing: bool) -> None:
    """One step on two rows, forward and backward, with attention written out, which makes both halves of the scores.

    The first layer's q, k and v need no gradient of their inputs: with two layers that shows (6 %)."""
    length = 128
    model = attach_lora(
        load_base_model(tiny_base, device="cpu", dtype=torch.float32),
        rank=4,
        alpha=8,
        dropout=0.0,
        target_modules="all-linear",
        seed=0,
    )
    loss = Policy(model, device="cpu", dtype=torch.float32)
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.arange(2 * length)[None] % 500
    labels = ids.clone()
    labels[0, [0, length]] = -100
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        (-loss.logprobs(MicroBatch(ids, labels, [length, length])).sum()).backward()
    setting = make_setting(tokens=2 * length, learned=2 * length, checkpointing=checkpointing)
    shape = read_shape(tiny_base)
    shape = replace(shape, query=2 * shape.query)
    steps = Steps(training_rows=2, held_out=0, rows_per_step=2, per_epoch=1, total=1)
    rows = Rows(count=2, tokens=2 * length, learned=2 * (length - 1), longest=length)
    cost = Operations.of(shape, shape.linears, 4)
    expected = run_operations(cost, setting, rows=rows, steps=steps, training=TrainingSpec())
    assert 0.99 <= expected / counted.get_total_flops() <= 1.06


def test_eight_billion_parameters_on_each_size(large_base: Callable[..., Path], dataset: Path) -> None:
    base = large_base()
    plan = make_plan(spec(resources={"gpus": 1, "memory": "8Gi"}), base=base, dataset=dataset)
    assert plan.shape.parameters == 8_030_261_248, "Llama 3.1 8B"
    assert plan.adapter_parameters == 41_943_040, "as PEFT prints it for rank 16"
    assert plan.steps is not None
    assert (plan.steps.total, plan.steps.held_out) == (5, 2)
    fits = {verdict.gpu.gigabytes: verdict.fits for verdict in plan.verdicts}
    assert list(fits) == [gpu.gigabytes for gpu in GPUS]
    assert fits[80]
    assert not fits[16]
    assert list(fits.values()) == sorted(fits.values()), "what fits on a size fits on a larger one"
    assert 3.5 <= plan.host_gib <= 5, "the base goes through tensor by tensor"
    assert plan.pod_fits
    two = make_plan(spec(resources={"gpus": 2, "memory": "8Gi"}), base=base, dataset=dataset)
    assert two.host_gib > 2 * plan.host_gib, "two ranks, and the process that starts them"
    times = [verdict.seconds for verdict in plan.verdicts if verdict.fits]
    assert all(time is not None and 0 < time[0] < time[1] for time in times)


def test_pods_that_train_together_share_steps_and_time_and_each_has_its_own_memory(
    large_base: Callable[..., Path], dataset: Path
) -> None:
    base = large_base()

    def planned(sharding: str = "none", **resources: int) -> Plan:
        training = {"batchSize": 2, "sharding": sharding}
        return make_plan(spec(resources={"memory": "8Gi", **resources}, training=training), base=base, dataset=dataset)

    one, four, two_of_two = planned(gpus=2), planned(gpus=4), planned(gpus=2, nodes=2)
    assert two_of_two.steps == four.steps != one.steps
    assert two_of_two.host_gib == one.host_gib
    assert [verdict.seconds for verdict in two_of_two.verdicts] == [verdict.seconds for verdict in four.verdicts]
    divided, divided_alike = planned("full", gpus=2, nodes=2), planned("full", gpus=2)
    assert divided.parts == divided_alike.parts, "each node has a copy"
    over_both, over_four = planned("full", gpus=1, nodes=2), planned("full", gpus=2)
    assert over_both.parts == over_four.parts, "one GPU a node shares with those of others"
    assert {part.name for part in planned(gpus=1, nodes=2).parts} == {part.name for part in one.parts}


def test_auto_divides_the_base_on_gpus_that_are_too_small_for_it_and_leaves_it_whole_on_others(
    large_base: Callable[..., Path],
) -> None:
    base = large_base()
    training = {"gradientCheckpointing": True}

    def planned(**changed: Any) -> Plan:
        return make_plan(spec(**{"training": training, **changed}), base=base, dataset=None)

    four = planned(resources={"gpus": 4})
    assert {verdict.gpu.gigabytes: verdict.division.shards for verdict in four.verdicts} == {
        16: 4, 24: 1, 40: 1, 48: 1, 80: 1, 141: 1
    }  # fmt: skip
    assert all(verdict.fits for verdict in four.verdicts)
    assert four.setting.shards == 1, "the bill is that of the GPUs with the whole base"
    assert four.verdicts[0].needed < four.verdicts[1].needed == four.device_gib * 2**30
    assert not planned(resources={"gpus": 4}, training={**training, "sharding": "none"}).verdicts[0].fits
    two_nodes = planned(resources={"gpus": 2, "nodes": 2}).verdicts[0]
    assert (two_nodes.fits, two_nodes.division.how) == (True, "in 4 parts"), "13.5 of 14.7 GiB in 2 parts are too much"
    for whole in ({"gpus": 1}, {"gpus": 0, "memory": "64Gi"}):
        assert planned(resources=whole).setting.shards == 1
    bits = planned(resources={"gpus": 4}, model={"path": "b", "quantization": "4bit"})
    assert {verdict.division.shards for verdict in bits.verdicts} == {1}


def test_the_bill_of_a_base_that_no_gpu_holds_is_that_of_its_parts(
    large_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [gpu for gpu in GPUS if gpu.gigabytes == 16]
    monkeypatch.setattr("llm_tuning.planning.plan.GPUS", small)
    plan = make_plan(
        spec(resources={"gpus": 4}, training={"gradientCheckpointing": True}), base=large_base(), dataset=None
    )
    assert plan.setting.shards == 4
    assert plan.verdicts[0].needed == plan.device_gib * 2**30
    assert any(part.how.endswith("one of 4 parts") for part in plan.parts)


def test_a_step_that_is_less_than_a_pass_is_said(large_base: Callable[..., Path], dataset: Path) -> None:
    base = large_base()

    def note(**training: Any) -> str:
        plan = make_plan(spec(training=training), base=base, dataset=dataset)
        return next((note for note in plan.notes if "a step holds" in note), "")

    assert "less than the 4,096 that a pass takes: training.batchSize 32 to 64 keeps a GPU busier" in note()
    assert note(batchSize=40).endswith("less than the 4,096 that a pass takes")
    assert note(maxTokensPerPass=64) == ""


def test_a_small_base_is_said_to_train_faster_in_a_larger_pass_where_a_card_has_room(
    tiny_base: Path, large_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(base: Path, **training: Any) -> str:
        notes = make_plan(spec(training=training), base=base, dataset=None).notes
        return next((note for note in notes if "faster" in note), "")

    faster = "training.maxTokensPerPass {} fits GPUs of {} GB and more: faster with a base this small, "
    assert note(tiny_base) == faster.format(16384, 16) + "with training.batchSize 32 to 64"
    assert note(tiny_base, maxTokensPerPass=4096) == "", "what was set is meant"
    assert note(large_base()) == ""
    small = replace(read_shape(tiny_base), parameters=2 * 10**9)
    monkeypatch.setattr("llm_tuning.planning.plan.read_shape", lambda _base: small)
    assert note(tiny_base).startswith(faster.format(8192, 16)), "below 2.5 billion"
    monkeypatch.setattr("llm_tuning.planning.plan.GPUS", [replace(gpu, usable_gib=gpu.usable_gib / 10) for gpu in GPUS])
    assert note(tiny_base).startswith(faster.format(8192, 80)), "the base takes 3.7 GiB, the context 0.8"
    monkeypatch.setattr("llm_tuning.planning.plan.GPUS", [replace(gpu, usable_gib=1) for gpu in GPUS])
    assert note(tiny_base) == ""


def test_the_evaluation_is_in_the_plan(large_base: Callable[..., Path], dataset: Path) -> None:
    base = large_base()
    plan = make_plan(spec(), base=base, dataset=dataset)
    assert plan.steps is not None
    assert plan.rows is not None
    assert plan.setting.scored == max(plan.rows.longest, int(2 * plan.rows.mean)), "two rows are held out"
    assert 0 < sum(part.size for part in plan.evaluation) / 2**30 < plan.device_gib
    ppo = make_plan(spec(mode="ppo"), base=base, dataset=None)
    assert ppo.setting.scored == 4096, "it scores the training rows, too"
    none = make_plan(spec(training={"evalFraction": 0}), base=base, dataset=None)
    assert none.evaluation == []


def test_a_smaller_pass_is_the_first_remedy_and_cards_are_named(tiny_base: Path) -> None:
    plan = make_plan(spec(training={"maxTokensPerPass": 8192, "batchSize": 64}), base=tiny_base, dataset=None)
    assert all(verdict.fits and not verdict.tight for verdict in plan.verdicts)
    assert not any("more GPUs or nodes" in note for note in plan.notes)
    assert any("(T4) trains in fp32" in note and "GiB there" in note for note in plan.notes)
    assert not any("V100" in note for note in plan.notes), "CUDA 13 has no kernels for it"
    assert any(note.startswith("time: 3% to 30%") for note in plan.notes), "a small base makes a GPU wait"


def test_long_rows_need_a_remedy_that_works(large_base: Callable[..., Path]) -> None:
    base = large_base()
    asked: dict[str, Any] = {"maxLength": 12288}
    plan = make_plan(spec(training=asked), base=base, dataset=None)
    assert plan.setting.tokens == 12288, "a row is never cut into passes"
    assert plan.steps is None
    assert {verdict.seconds for verdict in plan.verdicts} == {None}
    remedies = {verdict.gpu.gigabytes: verdict.remedy for verdict in plan.verdicts if not verdict.fits}
    assert remedies[80] == "training.gradientCheckpointing: true"
    assert ", or resources.gpus: " in remedies[16], "more GPUs need no 4 bits"
    assert any(note.startswith("more GPUs or nodes: each takes training.batchSize rows") for note in plan.notes)
    better = make_plan(spec(training={**asked, "gradientCheckpointing": True}), base=base, dataset=None)
    assert next(verdict.fits for verdict in better.verdicts if verdict.gpu.gigabytes == 80)
    assert remedies[16].startswith("model.quantization: 4bit"), remedies[16]
    four_bits = spec(training={**asked, "gradientCheckpointing": True}, model={"path": "b", "quantization": "4bit"})
    assert next(verdict.fits for verdict in make_plan(four_bits, base=base, dataset=None).verdicts)


def test_both_answers_of_a_pair_are_in_one_pass(tiny_base: Path) -> None:
    training = {"maxLength": 3000, "maxTokensPerPass": 1024}
    tokens = [
        make_plan(spec(mode=mode, training=training), base=tiny_base, dataset=None).setting.tokens
        for mode in ("sft", "kto", "dpo")
    ]
    assert tokens == [3000, 3000, 6000]


def test_on_the_cpu_the_pods_memory_decides(tiny_base: Path, dataset: Path) -> None:
    plan = make_plan(spec(resources={"gpus": 0, "memory": "4G"}), base=tiny_base, dataset=dataset)
    assert plan.verdicts == []
    assert plan.pod_fits
    assert plan.pod_gib == pytest.approx(4e9 / 2**30)
    small = make_plan(spec(resources={"gpus": 0, "memory": "900Mi"}), base=tiny_base, dataset=dataset)
    assert not small.pod_fits


def test_rows_that_would_be_refused_are_refused_here(tiny_base: Path, dataset: Path) -> None:
    dataset.write_text(dataset.read_text() + '{"prompt": "no answer"}\n')
    with pytest.raises(DatasetRefused, match="row 41"):
        make_plan(spec(), base=tiny_base, dataset=dataset)


def test_a_base_that_is_none_and_a_module_that_is_none(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        make_plan(spec(), base=tmp_path / "none", dataset=None)
    with pytest.raises(InputError, match=r"spec\.lora\.targetModules: c_attn names no linear module.*q_proj"):
        make_plan(spec(lora={"targetModules": "c_attn"}), base=tiny_base, dataset=None)


def test_what_is_not_modelled_is_said(large_base: Callable[..., Path]) -> None:
    plan = make_plan(spec(), base=large_base(final_logit_softcapping=30.0, num_experts=8), dataset=None)
    assert any("mixture of experts" in note for note in plan.notes)
    assert any("estimate" in note for note in plan.notes)


def test_no_time_is_given_in_fp32_whose_peak_is_another(large_base: Callable[..., Path], dataset: Path) -> None:
    base = large_base()
    times = {
        precision: [verdict.seconds for verdict in plan.verdicts if verdict.fits]
        for precision in ("bf16", "fp32")
        for plan in [make_plan(spec(training={"precision": precision}), base=base, dataset=dataset)]
    }
    assert all(times["bf16"])
    assert times["fp32"]
    assert not any(times["fp32"])
    notes = make_plan(spec(training={"precision": "fp32"}), base=base, dataset=dataset).notes
    assert [note for note in notes if note.startswith("time ")] == [
        "time is not estimated in fp32, which takes several times as long as bf16"
    ]


def test_a_card_without_bf16_gets_its_own_verdict(large_base: Callable[..., Path], dataset: Path) -> None:
    base = large_base()
    said = [
        next(note for note in make_plan(spec(**changed), base=base, dataset=dataset).notes if "T4" in note)
        for changed in (
            {},
            {"model": {"path": "base/tiny", "quantization": "4bit"}, "training": {"gradientCheckpointing": True}},
        )
    ]
    assert (
        "GiB too much for 16 GB; would fit with model.quantization: 4bit and training.gradientCheckpointing: true"
        in said[0]
    )
    assert said[1].endswith("GiB there, which fits 16 GB")


def test_4_bits_say_what_the_proof_needs_at_the_end(large_base: Callable[..., Path]) -> None:
    base = large_base()
    said = {
        (bits, gpus): [note for note in plan.notes if "proof" in note]
        for bits in ("none", "4bit")
        for gpus in (0, 1)
        for plan in [
            make_plan(
                spec(model={"path": "base/tiny", "quantization": bits}, resources={"gpus": gpus}),
                base=base,
                dataset=None,
            )
        ]
    }
    needed = (read_shape(base).parameters * 2 + SCORING_BYTES + CUDA_CONTEXT_BYTES) / 2**30
    assert said["4bit", 1] == [
        f"4 bits: at its end the run loads the base in bf16 to score the proof's probes, {needed:.1f} GiB; on a "
        "smaller GPU they are scored on 4 bits, and a small effect may not be provable"
    ]
    assert not any(said[case] for case in said if case != ("4bit", 1))
