"""Which cards an engine of this machine has, and whether a training has room beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.engines.vllm.install import Vllm
from llm_tuning.openai_api.local import machine as module
from llm_tuning.openai_api.local.machine import GIB, Machine

CUDA, CPU = Vllm("python", cpu_build=False), Vllm("python", cpu_build=True)


def _object(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    every = {"model": {"path": "base/tiny"}, "volume": {"claimName": "local"}}
    metadata = {"name": "a", "namespace": "local", "uid": "1", "generation": 1, "resourceVersion": "1"}
    version = "tuning.llmtuning.dev/v1alpha1"
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": every | spec}


def _job(gpus: int) -> TuningJobView:
    return TuningJobView.of(_object("TuningJob", {"dataset": {"path": "datasets/a.json"}, "resources": {"gpus": gpus}}))


def _service(gpus: int = 1) -> InferenceServiceView:
    return InferenceServiceView.of(_object("InferenceService", {"resources": {"gpus": gpus}}))


@pytest.mark.parametrize(
    ("cards", "training", "serving", "has_room"),
    [
        ("0", 1, 1, False),
        ("0 1", 1, 1, True),
        ("0 1", 2, 1, False),
        ("0 1", 1, 2, False),
        ("0 1 2 3", 2, 2, True),
        ("0", 0, 1, True),  # the training is on the CPU
        ("0 1", 8, 1, False),  # it takes what there is
    ],
)
def test_on_gpus_a_training_and_vllm_have_cards_of_their_own(
    cards: str, training: int, serving: int, *, has_room: bool, tmp_path: Path
) -> None:
    machine = Machine(CUDA, tuple(cards.split()))
    for running in (False, True):
        assert machine.has_room(_job(training), _service(serving), tmp_path, running=running) is has_room


def test_vllm_takes_the_last_cards_and_names_them_in_the_order_of_nvidia_smi() -> None:
    machine = Machine(CUDA, ("4", "5", "6"))
    assert machine.serving_cards(_service(2)) == ("5", "6")
    given = machine.engine_environment(("5", "6"), {})
    assert given == {"CUDA_VISIBLE_DEVICES": "5,6", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert machine.engine_environment(("6",), {"CUDA_VISIBLE_DEVICES": "4,5,6"}) == {"CUDA_VISIBLE_DEVICES": "6"}


def test_a_vllm_for_the_cpu_takes_no_card_and_leaves_the_gpu_to_the_training(tmp_path: Path) -> None:
    machine = Machine(CPU, ("0",))
    assert machine.serving_cards(_service()) == ()
    assert machine.has_room(_job(1), _service(), tmp_path, running=False)


def test_what_the_user_says_of_vllm_on_the_cpu_stays() -> None:
    given = Machine(CPU, ()).engine_environment((), {"VLLM_CPU_KVCACHE_SPACE": "3"})
    assert "VLLM_CPU_KVCACHE_SPACE" not in given
    assert "VLLM_CPU_KVCACHE_SPACE" in Machine(CPU, ()).engine_environment((), {})


@pytest.mark.parametrize(
    ("free", "beside_a_running", "beside_a_new"), [(1, False, False), (4, True, False), (12, True, True)]
)
def test_on_the_cpu_the_memory_has_to_hold_both(
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    *,
    beside_a_running: bool,
    beside_a_new: bool,
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tiny").symlink_to(tiny_base)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setattr(module, "free_host_bytes", lambda: free * GIB)
    machine = Machine(CPU, ())
    found = [machine.has_room(_job(0), _service(), tmp_path, running=running) for running in (True, False)]
    assert found == [beside_a_running, beside_a_new]


@pytest.mark.parametrize(
    ("environment", "cards"),
    [({}, ("0", "1")), ({"CUDA_VISIBLE_DEVICES": "1"}, ("1",)), ({"CUDA_VISIBLE_DEVICES": ""}, ())],
)
def test_the_cards_are_those_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cards: tuple[str, ...]
) -> None:
    monkeypatch.setattr(module, "gpu_count", lambda: 2)
    monkeypatch.setattr(module, "find_vllm", lambda root, environment: CUDA)
    assert module.find_machine(Path(), environment) == Machine(CUDA, cards)
