"""A base that is divided over two ranks is, to the bit, one that each of them has whole: in every mode, to the end."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from llm_tuning.data.call_sample import Asked
from llm_tuning.data.rows import Conversation
from llm_tuning.models.shape import read_shape
from llm_tuning.run.context import TrainRun
from llm_tuning.run.memory import base_bytes
from llm_tuning.trainers import calls, sharding
from llm_tuning.trainers.model import attach_lora, load_base_model
from llm_tuning.trainers.parallel import process_group
from llm_tuning.trainers.policy import Policy
from tests.support.ppo_rows import examples, write_ppo_rows
from tests.support.preference_rows import pairs, write_labels, write_pairs
from tests.support.recipe_runs import in_processes, train
from tests.support.rows import write_rows
from tests.support.shapes import make_setting
from tests.support.tiny_base import make_base
from tests.support.tool_rows import TOOLS, make_tool_base, requests, write_conversations
from tests.support.train_run import make_run

MODES = ("sft", "ppo", "dpo", "kto")
TRAINING = {"learning_rate": 3e-3, "eval_fraction": 0.1, "eval_steps": 2, "max_tokens_per_pass": 128}
"""So few tokens that ranks have unequal numbers of passes."""
LENGTHS = [3, 90, 17, 5, 60, 29, 120, 8, 11, 44, 70, 6, 33, 25, 9, 100, 14, 52, 7, 21, 38, 64, 10]
ROWS_A_STEP = 6

Start = Callable[..., list[TrainRun]]


def write_rows_of(mode: str, folder: Path, base: Path) -> None:
    if mode == "sft":
        write_rows(folder, LENGTHS)
    elif mode == "dpo":
        write_pairs(folder, base, pairs(held_out=False)[: len(LENGTHS)])
    else:
        chosen = examples(held_out=False)[: len(LENGTHS)]
        if mode == "kto":
            write_labels(folder, base, chosen, [example.good for example in chosen])
        else:
            write_ppo_rows(folder, base, chosen, [float(example.good) for example in chosen])


@pytest.fixture
def start(tiny_base: Path, tmp_path: Path) -> Start:
    """`start(name, mode, ranks, **training)` makes the run of each rank, in a folder of that name."""

    def make(
        name: str,
        mode: str,
        ranks: int,
        *,
        lora_dropout: float = 0.0,
        base: Path = tiny_base,
        start_adapter: Path | None = None,
        **training: Any,
    ) -> list[TrainRun]:
        work = tmp_path / name / "run"
        if not (work / "rows").exists():
            write_rows_of(mode, work / "rows", base)
        settings = TRAINING | {"batch_size": ROWS_A_STEP // ranks} | training
        lora = {"rank": 4, "alpha": 8, "dropout": lora_dropout}
        return [
            make_run(
                work,
                base,
                mode=mode,
                training=settings,
                lora=lora,
                rank=rank,
                world=ranks,
                start_adapter=start_adapter,
            )
            for rank in range(ranks)
        ]

    return make


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], int]:
    """Counts over all ranks what sharding alone does; `counted(name)` forgets what it returns."""

    def note(owner: object, name: str) -> None:
        method = getattr(owner, name)

        def noting(*given: Any, **named: Any) -> Any:
            with (tmp_path / name).open("a") as log:
                log.write(".")
            return method(*given, **named)

        monkeypatch.setattr(owner, name, noting)

    note(Policy, "empty_pass")
    note(sharding, "shard")

    def count(name: str) -> int:
        path = tmp_path / name
        found = len(path.read_text()) if path.exists() else 0
        path.unlink(missing_ok=True)
        return found

    return count


def in_forks(ranks: Sequence[Callable[[], None]]) -> None:
    children = [multiprocessing.get_context("fork").Process(target=rank) for rank in ranks]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * len(ranks)


def made(run: TrainRun) -> dict[str, bytes]:
    """Return all that a run leaves and a later one or a server reads."""
    names = ("stage/adapter_model.safetensors", "stage/parity.json", "evaluation.json", "training.json")
    return {name: (run.work / name).read_bytes() for name in names if (run.work / name).exists()}


def losses(run: TrainRun) -> list[list[float]]:
    return [json.loads((run.work / f"losses-{rank}.json").read_text()) for rank in range(run.world)]


@pytest.mark.parametrize("mode", MODES)
def test_two_sharded_ranks_are_two_whole_ones_to_the_bit_and_one_of_the_double_batch(
    start: Start, counted: Callable[[str], int], mode: str
) -> None:
    whole, sharded = start("whole", mode, 2), start("sharded", mode, 2, sharding="full")
    assert in_processes(whole) == [0, 0]
    assert counted("shard") == counted("empty_pass") == 0
    assert in_processes(sharded) == [0, 0]
    assert counted("shard") == 2
    assert counted("empty_pass") > 0, "ranks had equally many passes, and the test shows less than it could"
    assert losses(sharded[0]) == losses(whole[0])
    assert len(losses(sharded[0])[0]) == 4
    assert made(sharded[0]) == made(whole[0])
    assert len(made(sharded[0])) >= 3

    (one,) = start("one", mode, 1, sharding="full")  # which has nobody to share with
    train(one)
    assert losses(sharded[0])[0] == pytest.approx(one.reporter.losses, abs=1e-5)  # type: ignore[attr-defined]
    adapters = [load_file(run.stage / "adapter_model.safetensors") for run in (one, sharded[0])]
    assert_close(adapters[1], adapters[0], rtol=1e-3, atol=1e-4)


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "checkpointed, with dropout, in bf16": (
        "sft",
        {"gradient_checkpointing": True, "lora_dropout": 0.2, "precision": "bf16"},
    ),
    "checkpointed without dropout": ("dpo", {"gradient_checkpointing": True}),
    "values in bf16": ("ppo", {"precision": "bf16", "epochs": 2}),
}


@pytest.mark.parametrize("form", FORMS)
def test_so_it_is_in_every_form_of_a_step(start: Start, form: str) -> None:
    mode, training = FORMS[form]
    whole, sharded = start("whole", mode, 2, **training), start("sharded", mode, 2, **training, sharding="full")
    assert in_processes(whole) == [0, 0]
    assert in_processes(sharded) == [0, 0]
    assert losses(sharded[0]) == losses(whole[0])
    assert made(sharded[0]) == made(whole[0])


@pytest.mark.parametrize(("mode", "ranks"), [("ppo", (2, 1)), ("sft", (1, 2))])
def test_a_stopped_run_goes_on_with_another_number_of_ranks(start: Start, mode: str, ranks: tuple[int, int]) -> None:
    """It does not matter either whether it was sharded before."""
    before, after = ranks
    (one,) = start("one", mode, 1)
    train(one)
    assert in_processes(start("run", mode, before, sharding="full"), signal_last_rank_at=2) == [75] * before
    runs = start("run", mode, after, sharding="full")
    assert in_processes(runs) == [0] * after
    want = one.reporter.losses  # type: ignore[attr-defined]
    assert losses(runs[0])[0] == pytest.approx(want[2:], abs=1e-5)


def test_three_ranks_divide_what_is_no_multiple_of_three(start: Start) -> None:
    whole, sharded = start("whole", "sft", 3, max_steps=2), start("sharded", "sft", 3, max_steps=2, sharding="full")
    assert in_processes(whole) == [0, 0, 0]
    assert in_processes(sharded) == [0, 0, 0]
    assert losses(sharded[0]) == losses(whole[0])
    assert made(sharded[0]) == made(whole[0])


def bytes_of_a_pass(base: Path, rank: int) -> None:
    """Leave in `bytes-RANK` what a step's forward and backward pass gather, each time one."""
    found: list[int] = []
    broadcast = torch.distributed.broadcast

    def noting(part: torch.Tensor, *, group_src: int, **named: Any) -> Any:
        size = part.numel() * part.element_size()
        if group_src == 0:  # the first of the parts that make a whole
            found.append(size)
        else:
            found[-1] += size
        return broadcast(part, group_src=group_src, **named)

    with process_group(base / "rendezvous", rank=rank, world=2, device="cpu"):
        model = load_base_model(base, device="cpu", dtype=torch.bfloat16, sharded=True)
        lora = attach_lora(model, rank=4, alpha=8, dropout=0.0, target_modules="all-linear", seed=1)
        policy = Policy(lora, device="cpu", dtype=torch.bfloat16)
        torch.distributed.broadcast = noting  # type: ignore[assignment]
        policy.empty_pass(backward=True)
    (base / f"bytes-{rank}").write_text(json.dumps(found))


def test_a_pass_gathers_the_base_once_and_its_layers_once_more(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", layers=3)
    in_forks([partial(bytes_of_a_pass, base, rank) for rank in (0, 1)])
    shapes = {name: tensor.numel() for name, tensor in load_file(base / "model.safetensors").items()}
    layers = [sum(size for name, size in shapes.items() if f".layers.{n}." in name) for n in range(3)]
    embeddings, norm, head = (
        shapes[name] for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    )
    forward = [norm, embeddings, *layers, head]
    back = [norm, *reversed(layers)]
    for rank in (0, 1):
        assert json.loads((base / f"bytes-{rank}").read_text()) == [2 * size for size in [*forward, *back]]


def make_tied_base(folder: Path) -> Path:
    """A base whose output layer has the embeddings' numbers."""
    base = make_base(folder)
    config = LlamaConfig.from_pretrained(base, tie_word_embeddings=True, num_hidden_layers=3)
    LlamaForCausalLM(config).save_pretrained(base)
    return base


def held_by_a_rank(base: Path, rank: int) -> None:
    """Leave in `held-RANK` the bytes of the base that this one of two ranks keeps."""
    with process_group(base / "rendezvous", rank=rank, world=2, device="cpu"):
        model = load_base_model(base, device="cpu", dtype=torch.bfloat16, sharded=True)
        parts = [parameter.to_local() for parameter in model.parameters()]
    (base / f"held-{rank}").write_text(str(sum(part.numel() * part.element_size() for part in parts)))


@pytest.mark.parametrize("make", [make_base, make_tied_base])
def test_a_rank_holds_what_the_plan_says(make: Callable[[Path], Path], tmp_path: Path) -> None:
    base = make(tmp_path / "base")
    in_forks([partial(held_by_a_rank, base, rank) for rank in (0, 1)])
    planned = base_bytes(read_shape(base), make_setting(tokens=8, learned=8, number_bytes=2, processes=2, shards=2))
    assert [int((base / f"held-{rank}").read_text()) for rank in (0, 1)] == [planned] * 2


def test_tied_embeddings_and_a_start_adapter(start: Start, tmp_path: Path) -> None:
    """The output layer's part is that of the embeddings; the frozen start adapter is whole on every rank."""
    base = make_tied_base(tmp_path / "tied")
    (before,) = start("before", "sft", 1, base=base, max_steps=2)
    train(before)
    changed = {"base": base, "start_adapter": before.stage, "max_steps": 2}
    whole, sharded = start("whole", "ppo", 2, **changed), start("sharded", "ppo", 2, **changed, sharding="full")
    assert in_processes(whole) == [0, 0]
    assert in_processes(sharded) == [0, 0]
    assert losses(sharded[0]) == losses(whole[0])
    assert made(sharded[0]) == made(whole[0])


def test_answers_are_generated_together(start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Eleven held-out answers, of different lengths: in the last turn one rank has nothing to ask."""
    base = make_tool_base(tmp_path / "base")
    generate = calls.generate

    def noting(policy: Policy, asked: Sequence[Asked], stop_ids: frozenset[int]) -> list[list[int]]:
        answers = generate(policy, asked, stop_ids)
        name = "sharded" if policy.sharded else "whole"
        with (tmp_path / f"{name}.jsonl").open("a") as log:
            log.writelines(json.dumps(answer) + "\n" for one, answer in zip(asked, answers, strict=True) if one.tools)
        return answers

    monkeypatch.setattr(calls, "generate", noting)
    of_tools = [Conversation(each.messages, tools=TOOLS) for each in requests()[:14]]
    for name, divided in (("whole", "none"), ("sharded", "full")):
        write_conversations(tmp_path / name / "run" / "rows", base, of_tools[:3], of_tools[3:])
        options = {"base": base, "sharding": divided, "max_steps": 1, "eval_fraction": 0.05}
        assert in_processes(start(name, "sft", 2, **options)) == [0, 0]
    answers = [sorted((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("whole", "sharded")]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 2 * 11, "of the base and of the tuned model"
    evaluations = [json.loads((tmp_path / name / "run/evaluation.json").read_text()) for name in ("whole", "sharded")]
    assert evaluations[0] == evaluations[1]
    assert evaluations[1]["calls"] == {"with_calls": 11, "without_calls": 0}


def peak_of_loading(base: Path, rank: int, ranks: int) -> None:
    """Leave in `peak-RANKS` what this rank took at most, in bytes, above what it had before."""

    def status(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    with process_group(base / f"rendezvous-{ranks}", rank=rank, world=ranks, device="cpu"):
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        load_base_model(base, device="cpu", dtype=torch.float32, sharded=ranks > 1)
        (base / f"peak-{ranks}-{rank}").write_text(str(status("VmHWM") - before))


def test_a_rank_reads_its_slices_and_never_has_the_whole_base(tmp_path: Path) -> None:
    """32 M parameters in bf16, computed in fp32."""
    config = LlamaConfig(
        vocab_size=4000, hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20MB")
    peaks = {}
    for ranks in (1, 2):
        in_forks([partial(peak_of_loading, tmp_path, rank, ranks) for rank in range(ranks)])
        peaks[ranks] = max(int((tmp_path / f"peak-{ranks}-{rank}").read_text()) for rank in range(ranks))
    whole = 4 * sum(parameter.numel() for parameter in LlamaForCausalLM(config).parameters())
    layer = 4 * (4 * 512**2 + 3 * 512 * 2048)
    most = whole / 2 + layer + 2**26  # what the file's pages and the first use of a library take
    assert peaks[2] < most < whole + 2**26 < peaks[1]
