"""Which card a rank sees, and what torch finds in its environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_tuning.errors import EXIT_INPUT, InputError
from llm_tuning.run.devices import gpu_defaults, gpus_in_words, own_gpu

GPU, MIG = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-fae9f4ac-17b3-5c1c-8b7d-4a1b2c3d4e5f"


@pytest.mark.parametrize(
    ("device", "visible", "own"),
    [
        ("cuda:0", None, "0"),
        ("cuda:5", None, "5"),
        ("cuda:1", "2,5", "5"),
        ("cuda:0", "2,5", "2"),
        ("cuda:1", " 2 , 5 ", "5"),
        ("cuda:1", f"{GPU},GPU-1d3", "GPU-1d3"),
        ("cuda:0", f"{GPU},GPU-1d3", GPU),
        ("cuda:0", MIG, MIG),
        ("cuda:1", f"MIG-GPU-8932/1/0,{MIG}", MIG),
        ("cuda:2", "2,5", ""),  # none: never a card that was not lent
        ("cuda:0", "", ""),
        ("cuda:1", "3,-1,4", ""),  # CUDA stops at the first that is none
        ("cuda:2", "3,-1,4", ""),
        ("cuda:1", "3,x,4", ""),
    ],
)
def test_a_gpu_is_counted_among_those_that_are_visible(device: str, visible: str | None, own: str) -> None:
    assert own_gpu(device, visible) == own


def test_what_the_user_has_set_for_torch_stays() -> None:
    assert gpu_defaults({}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert "PYTORCH_ALLOC_CONF" not in gpu_defaults({name: "max_split_size_mb:128"})
    assert "CUDA_DEVICE_ORDER" not in gpu_defaults({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert "CUDA_DEVICE_ORDER" not in gpu_defaults({"CUDA_VISIBLE_DEVICES": "1"})  # whose number it was chosen by


@pytest.mark.parametrize("given", [None, "max_split_size_mb:128"])
def test_the_command_sets_it_before_torch_is_imported_and_the_function_leaves_its_callers_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None
) -> None:
    from llm_tuning.codes import tune_llm
    from llm_tuning.run import tune

    found: list[str | None] = []
    monkeypatch.setattr(os, "environ", {**os.environ} | ({} if given is None else {"PYTORCH_ALLOC_CONF": given}))

    def stop(*_: object) -> str:
        found.append(os.environ.get("PYTORCH_ALLOC_CONF"))
        raise InputError("far enough")

    monkeypatch.setattr(tune, "tune", stop)
    with pytest.raises(InputError, match="far enough"):
        tune_llm.run_tuning(tmp_path / "base", tmp_path / "rows")
    assert found == [given]
    assert tune_llm.main(["--llm_path", "base", "--dataset_path", "rows"]) == EXIT_INPUT
    assert found == [given, given or "expandable_segments:True"]


def test_gpus_are_named_by_their_numbers() -> None:
    assert gpus_in_words(["cuda:5"]) == "GPU 5"
    assert gpus_in_words(["cuda:0", "cuda:3"]) == "GPUs 0, 3"
