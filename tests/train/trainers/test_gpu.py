"""The GPUs of a run, found or refused before a model is loaded; torch.cuda is patched, as this machine has none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from llm_tuning.errors import InputError, TryAgain
from llm_tuning.trainers.gpu import check_visible, runs_on, usable_device, why_no_cuda
from llm_tuning.trainers.loop import _arguments
from llm_tuning.trainers.parallel import process_group
from tests.support.train_run import make_run

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver by downloading "
    "and installing a new version from the URL: ... Alternatively, go to: ..."
)
NOT_READY = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 802: system not yet initialized"
)
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


def no_cuda(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def init() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Gives the machine cards; returns on which ones a context was opened."""

    def give(count: int, *, capability: tuple[int, int] = (9, 0), broken: str | None = None) -> list[str]:
        opened: list[str] = []

        def mem_get_info(device: str) -> tuple[int, int]:
            if broken is not None:
                raise torch.AcceleratorError(broken)
            opened.append(device)
            return 79 << 30, 80 << 30

        for name, answer in {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "get_arch_list": lambda: WHEEL,
            "get_device_capability": lambda _device: capability,
            "get_device_name": lambda _device: "Tesla V100-SXM2-16GB",
            "set_device": lambda device: None if broken else opened.append(device),
            "mem_get_info": mem_get_info,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        return opened

    return give


# No CUDA at all


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (TOO_OLD, "The NVIDIA driver on your system is too old (found version 12020)"),
        (NOT_READY, "Error 802: system not yet initialized"),
        ("Found no NVIDIA driver on your system. Please check that", "Found no NVIDIA driver on your system"),
        ("No CUDA GPUs are available", "No CUDA GPUs are available"),
    ],
)
def test_a_missing_gpu_has_torchs_own_reason_and_the_driver_it_needs(
    monkeypatch: pytest.MonkeyPatch, said: str, reason: str
) -> None:
    no_cuda(monkeypatch, said)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert why_no_cuda() == reason
    for ask in (lambda: usable_device(["cuda:0", "cuda:1"], 1), lambda: check_visible(["cuda:1"])):
        with pytest.raises(TryAgain) as caught:
            ask()
        assert caught.value.reason == "GPUUnavailable"
        assert str(caught.value) == (
            f"GPU 1 was asked for, but torch sees none: {reason}; torch is built for CUDA 13.0 and needs driver 580 or "
            "newer, and CUDA_VISIBLE_DEVICES is '3'; mend that, or set devices to cpu"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_only_the_default_device_falls_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("llm_tuning"), "propagate", True)
    assert usable_device(["cuda:0"], 0) == "cpu"
    (warning,) = caplog.messages
    assert warning.startswith("training on the CPU, as torch sees no GPU here: ")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert usable_device(["cuda:0"], 0) == "cpu"
    assert "CUDA_VISIBLE_DEVICES is ''" in caplog.messages[-1]
    with pytest.raises(TryAgain, match="torch sees none"):
        usable_device(["cuda:1"], 0)
    monkeypatch.setenv("LLM_TUNING_REQUIRE_GPU", "1")  # what a pod that was given GPUs has
    with pytest.raises(TryAgain, match="GPU 0 was asked for"):
        usable_device(["cuda:0"], 0)


# Fewer than were asked for


@pytest.mark.parametrize(
    ("count", "visible", "have"),
    [
        (1, None, "this machine has 1 GPU: 0"),
        (4, None, "this machine has 4 GPUs: 0 to 3"),
        (2, "2,5", "CUDA_VISIBLE_DEVICES=2,5 leaves 2 GPUs: 0 to 1, counted there"),
    ],
)
def test_on_one_machine_a_gpu_that_is_not_there_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, cards: Callable[..., list[str]], count: int, visible: str | None, have: str
) -> None:
    opened = cards(count)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for ask in (lambda: usable_device(["cuda:7"], 0), lambda: check_visible(["cuda:0", "cuda:7"])):
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value) == f"devices: there is no GPU 7; {have}"
    check_visible([f"cuda:{number}" for number in range(count)])
    assert opened == []
    assert usable_device([f"cuda:{count - 1}"], 0) == f"cuda:{count - 1}"
    assert set(opened) == {f"cuda:{count - 1}"}


def test_in_a_pod_fewer_gpus_than_it_was_given_are_no_fault_of_the_spec(
    monkeypatch: pytest.MonkeyPatch, cards: Callable[..., list[str]]
) -> None:
    cards(1)
    monkeypatch.setenv("LLM_TUNING_POD", "{}")
    with pytest.raises(TryAgain, match=r"^the pod was given 2 GPUs and torch sees 1: one is lost, or .*MIG") as caught:
        check_visible(["cuda:0", "cuda:1"])
    assert caught.value.reason == "GPUUnavailable"


def test_a_rank_of_several_has_its_card_alone(cards: Callable[..., list[str]]) -> None:
    opened = cards(1)
    assert usable_device(["cuda:2", "cuda:5"], 1) == "cuda:0"
    assert set(opened) == {"cuda:0"}


@pytest.mark.parametrize("device", ["cuda:3", "cuda:0", "cpu"])
def test_trainer_opens_no_context_on_the_first_gpu(
    cards: Callable[..., list[str]], tmp_path: Path, device: str
) -> None:
    opened = cards(4)
    arguments = _arguments(make_run(tmp_path, tmp_path, device=device), total=10)
    assert opened == []
    assert (arguments.device, arguments.n_gpu) == (torch.device(device), 0)  # 0: it looks after none


# A card that cannot be used


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nSearch for ...",
        "CUDA error: out of memory\nSearch for ...",
        "CUDA error: uncorrectable ECC error encountered\nSearch for ...",
    ],
)
def test_a_card_that_is_held_or_lost_is_tried_again(cards: Callable[..., list[str]], said: str) -> None:
    cards(4, broken=said)
    with pytest.raises(TryAgain) as caught:
        usable_device(["cuda:3"], 0)
    assert caught.value.reason == "GPUUnavailable"
    first = said.splitlines()[0]
    assert str(caught.value) == f"GPU 3 cannot be used: {first}; another process holds it, or it has failed"


def test_a_card_without_kernels_is_refused_by_its_name(cards: Callable[..., list[str]]) -> None:
    opened = cards(1, capability=(7, 0))
    with pytest.raises(InputError) as caught:
        usable_device(["cuda:0"], 0)
    (problem,) = caught.value.problems
    assert problem.where == "devices"
    assert problem.rule == (
        f"GPU 0 is a Tesla V100-SXM2-16GB of compute capability 7.0, and torch {torch.__version__} has kernels for "
        "7.5, 8.0, 8.6, 9.0, 10.0, 12.0"
    )
    assert opened == []


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 0), WHEEL, False),
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),  # on machine code for 8.6
        ((12, 1), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((11, 0), [*WHEEL, "compute_100"], True),
        ((9, 0), ["sm_90a"], True),
        ((8, 0), ["sm_86"], False),
        ((8, 0), [], True),
        ((8, 0), ["gfx90a"], True),  # AMD's names say nothing here
    ],
)
def test_machine_code_runs_on_later_cards_of_its_major_version(
    capability: tuple[int, int], built: list[str], runs: bool
) -> None:
    assert runs_on(capability, built) is runs


# The ranks' group


def test_nccl_is_bound_to_the_ranks_card_and_what_keeps_it_from_connecting_is_told(
    monkeypatch: pytest.MonkeyPatch, cards: Callable[..., list[str]], tmp_path: Path
) -> None:
    cards(1)
    asked: dict[str, Any] = {}

    def refuse(backend: str, **options: Any) -> None:
        asked.update(options, backend=backend)
        raise dist.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:77, invalid usage, NCCL version 2.27\nncclInvalidUsage: This usually ...\n"
            "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 81000\n"
        )

    monkeypatch.setattr(dist, "init_process_group", refuse)
    group = process_group(tmp_path / "rendezvous", rank=0, world=2, device="cuda:0")
    with pytest.raises(TryAgain, match=r"^NCCL cannot connect the 2 GPUs: Duplicate GPU detected") as caught, group:
        pass
    assert caught.value.reason == "GPUUnavailable"
    assert (asked["backend"], asked["device_id"]) == ("nccl", torch.device("cuda:0"))
