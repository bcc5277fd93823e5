"""A GPU that fails during a run. Real runs on the CPU, in which torch's error is raised where a GPU would raise it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_tuning.api.flags import FLAG_WORDS
from llm_tuning.engines.protocol import Unprovable
from llm_tuning.errors import InputError, TryAgain
from llm_tuning.pod.wording import message_of
from llm_tuning.proof.parity import read_parity
from llm_tuning.run.division import Division
from llm_tuning.trainers import memory, probes, sft
from llm_tuning.trainers.memory import Memory, Stage, gpu_errors_explained
from llm_tuning.trainers.policy import Policy
from tests.support.rows import write_rows
from tests.support.train_run import make_run

GIB = 1 << 30
NO_ROOM = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 24.00 GiB of which 1.00 GiB is free."
)


def card(monkeypatch: pytest.MonkeyPatch, *, free: float, reserved: float, total: float = 24) -> None:
    """A card's memory as torch would report it, in GiB."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (int(free * GIB), int(total * GIB)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: int(reserved * GIB))


def fail(error: Exception) -> Any:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise error

    return raise_it


TOKENS, QUANTIZATION = "training.maxTokensPerPass: is 512, with which ", "model.quantization: is none, with which "
OF_ROWS = "set max_tokens_per_pass to 256{}; a row longer than a pass is limited by max_length alone"
OF_BASE = "set quantization to 4bit or use a GPU with more memory or a smaller base"


class Point(NamedTuple):
    """Where memory runs out in a run with these settings, and what is said of it."""

    at: tuple[Any, str]
    stage: str
    field: str
    fix: str
    training: dict[str, Any] = {}  # noqa: RUF012 - never changed


POINTS = {
    "loading": Point((AutoModelForCausalLM, "from_pretrained"), "while loading the base", QUANTIZATION, OF_BASE),
    "training": Point(
        (Policy, "logprobs"), "in training", TOKENS, OF_ROWS.format(" or set gradient_checkpointing to true")
    ),
    "checkpointed": Point(
        (Policy, "logprobs"), "in training", TOKENS, OF_ROWS.format(""), {"gradient_checkpointing": True}
    ),
    "evaluation on the way": Point((Policy, "score"), "in evaluation", TOKENS, OF_ROWS.format(""), {"eval_steps": 1}),
    "last evaluation": Point((Policy, "score"), "in evaluation", TOKENS, OF_ROWS.format(""), {"max_steps": 1}),
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_memory_that_ran_out_names_the_stage_what_held_it_and_the_field_that_helps(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: Point
) -> None:
    write_rows(tmp_path / "rows", [8, 9, 10, 11] * 5)
    settings = {"batch_size": 4, "max_steps": 2, "max_tokens_per_pass": 512} | point.training
    run = make_run(tmp_path, tiny_base, devices=["cuda:3"], training=settings)
    card(monkeypatch, free=1, reserved=22)
    monkeypatch.setattr(*point.at, fail(NO_ROOM))
    with pytest.raises(InputError) as caught:
        sft.train(run)
    held = "(24.0 GiB, of which this run held 23.0 GiB; 1.5 GiB more was wanted)"
    assert str(caught.value) == f"{point.field}GPU 3 ran out of memory {point.stage} {held}; {point.fix}"
    assert not (tmp_path / "stage/parity.json").exists()


@pytest.mark.parametrize(
    ("sharding", "first"), [("none", "set sharding to full or set quantization to 4bit or "), ("full", "")]
)
def test_a_base_that_fills_one_of_several_gpus_is_to_be_divided(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str, first: str
) -> None:
    devices = ["cuda:0", "cuda:1"]
    division = Division(2 if sharding == "full" else 1, 2, "as asked for")
    run = make_run(tmp_path, tiny_base, devices=devices, world=2, division=division)
    card(monkeypatch, free=1, reserved=22)
    with pytest.raises(InputError) as caught, gpu_errors_explained(run, Stage.LOADING):
        fail(NO_ROOM)()
    assert str(caught.value).endswith(f"; {first}use a GPU with more memory or a smaller base")


@pytest.mark.parametrize(
    "at",
    [{"others": 0}, {"others": 12}, {"others": 0, "quantization": "4bit"}],
    ids=["alone", "with others on the card", "4 bits"],
)
def test_memory_that_runs_out_at_the_probes_costs_the_proof_and_not_the_adapter(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at: dict[str, Any],
) -> None:
    write_rows(tmp_path / "rows", [8, 9, 10, 11] * 5)
    run = make_run(
        tmp_path,
        tiny_base,
        devices=["cuda:3"],
        quantization=at.get("quantization", "none"),
        training={"max_steps": 2, "save_steps": 1},
    )
    sft.train(run)  # the next start finds the probes of this one
    assert (tmp_path / "stage/parity.json").exists()
    (tmp_path / "hardware.json").unlink()
    card(monkeypatch, free=1, reserved=22 - at["others"])
    monkeypatch.setattr(probes, "pad", fail(NO_ROOM))
    sft.train(run)
    assert (tmp_path / "stage/adapter_model.safetensors").exists()
    assert (tmp_path / "hardware.json").exists()
    assert [record.getMessage() for record in caplog.records if "parity.json" in record.getMessage()] == [
        "the adapter has no parity.json, and a server cannot prove it: memory ran out while scoring the probes (CUDA "
        "out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 24.00 GiB of which 1.00 GiB is free.)"
    ]
    with pytest.raises(Unprovable, match="no memory left to score the probes"):
        read_parity(tmp_path / "stage")


def test_other_errors_at_the_probes_end_the_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows", [8, 9, 10, 11] * 5)
    run = make_run(tmp_path, tiny_base, devices=["cuda:3"], training={"max_steps": 1})
    lost = torch.AcceleratorError("CUDA error: unknown error")
    lost.error_code = 999
    for error, raised in ((lost, TryAgain), (RuntimeError("mat1 and mat2 shapes"), RuntimeError)):
        monkeypatch.setattr(probes, "pad", fail(error))
        with pytest.raises(raised):
            sft.train(run)


def test_each_edge_has_its_fields_and_a_base_that_takes_most_of_the_card_is_told_of_4_bits(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (tiny_base / "model.safetensors").stat().st_size / GIB
    card(monkeypatch, total=0.8 * size, free=0.1 * size, reserved=0.7 * size)  # in bf16 it takes half of its file
    run = make_run(tmp_path, tiny_base, devices=["cuda:0"], training={"gradient_checkpointing": True})
    with pytest.raises(InputError) as caught, gpu_errors_explained(run, Stage.TRAINING):
        raise NO_ROOM
    (problem,) = caught.value.problems
    flags = problem.in_words(FLAG_WORDS).fix
    assert flags.startswith("use --max_tokens_per_pass 768 or use --quantization 4bit; a row longer than a pass")
    assert message_of(caught.value, None) == (
        "spec.training.maxTokensPerPass: is 1536, with which GPU 0 ran out of memory in training (0.0 GiB, of which "
        "this run held 0.0 GiB; 1.5 GiB more was wanted); set spec.training.maxTokensPerPass to 768 or set "
        "spec.model.quantization to 4bit; a row longer than a pass is limited by spec.training.maxLength alone"
    )


def test_memory_that_others_hold_is_tried_again(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "rows", [8, 9, 10, 11] * 5)
    card(monkeypatch, free=1, reserved=10)
    monkeypatch.setattr(Policy, "logprobs", fail(NO_ROOM))
    with pytest.raises(TryAgain) as caught:
        sft.train(make_run(tmp_path, tiny_base, devices=["cuda:0"]))
    assert caught.value.reason == "GPUUnavailable"
    assert str(caught.value) == (
        "GPU 0 ran out of memory in training (24.0 GiB, of which this run held 11.0 GiB and other processes 12.0 GiB; "
        "1.5 GiB more was wanted): they have to end, or the run needs another GPU"
    )


def test_a_base_that_is_larger_than_the_card_is_not_tried_again_whoever_else_is_there(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card(monkeypatch, total=24, free=20, reserved=0)
    monkeypatch.setattr(memory, "inspect_base", lambda _path: SimpleNamespace(parameters=14 * 10**9))
    run = make_run(tmp_path, tiny_base, device="cuda:0")
    with (
        pytest.raises(
            InputError, match=r"other processes 3\.0 GiB; 26\.1 GiB more was wanted\); set quantization to 4bit"
        ),
        gpu_errors_explained(run, Stage.LOADING),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 21.00 GiB.")


@pytest.mark.parametrize(
    ("own", "others", "wanted", "passing"),
    [
        (22, 1, 0.5, True),
        (22, 1, 3, False),  # not even alone on the card
        (23, 0, 1.5, False),
        (1, 22, 0, True),
    ],
)
def test_only_what_fits_on_the_card_alone_is_tried_again(
    own: float, others: float, wanted: float, passing: bool
) -> None:
    assert Memory(24 * GIB, int(own * GIB), int(others * GIB), int(wanted * GIB)).is_passing is passing


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA driver error: out of memory",
        "NCCL error in: x.cpp:77, unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 2 'out of memory'",
        "NCCL error in: x.cpp:77\nLast error:\nFailed to CUDA calloc async 608 bytes",
        "base/m cannot be loaded: CUDA out of memory. Tried to allocate 2.00 GiB.",
    ],
)
def test_other_libraries_run_out_of_the_same_memory(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    run = make_run(tmp_path, tiny_base, devices=["cuda:0", "cuda:1"], rank=1, world=2)
    card(monkeypatch, free=0.1, reserved=21.9)  # 2 GiB are what torch does not count of a rank
    with (
        pytest.raises(InputError, match="GPU 1 ran out of memory in evaluation"),
        gpu_errors_explained(run, Stage.EVALUATION),
    ):
        raise RuntimeError(said)
    card(monkeypatch, free=0.1, reserved=5)
    with pytest.raises(TryAgain, match="other processes"), gpu_errors_explained(run, Stage.EVALUATION):
        raise RuntimeError(said)


def test_a_card_that_does_not_answer_any_more_still_has_its_sentence(tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path, tiny_base, devices=["cuda:0"])
    with (
        pytest.raises(InputError, match=r"GPU 0 ran out of memory in training; set"),
        gpu_errors_explained(run, Stage.TRAINING),
    ):
        raise NO_ROOM


@pytest.mark.parametrize(
    ("code", "said"), [(214, "uncorrectable ECC error encountered"), (999, "unknown error"), (46, "busy")]
)
def test_a_card_that_fails_on_the_way_is_tried_again(tmp_path: Path, code: int, said: str) -> None:
    error = torch.AcceleratorError(f"CUDA error: {said}\nSearch for ...")
    error.error_code = code  # as torch sets it
    run = make_run(tmp_path, tmp_path, devices=["cuda:0"])
    with pytest.raises(TryAgain) as caught, gpu_errors_explained(run, Stage.TRAINING):
        raise error
    assert caught.value.reason == "GPUUnavailable"
    assert str(caught.value) == f"GPU 0 failed in training: CUDA error: {said}"


@pytest.mark.parametrize(
    "error",
    [
        TryAgain("Stopped", "stopped on request"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA out of memory, says a row of the data set"),
    ],
)
def test_other_errors_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    run = make_run(tmp_path, tmp_path, devices=["cuda:0"])
    with pytest.raises(type(error)) as caught, gpu_errors_explained(run, Stage.TRAINING):
        raise error
    assert caught.value is error
