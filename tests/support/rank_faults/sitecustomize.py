"""Ends or holds a rank at a moment that no signal from outside meets: in a forward pass, a checkpoint, publishing.

Python imports this module at its start because its folder is on PYTHONPATH (`nodes_on_a_cluster.rank_faults`). An order
is an empty file in `orders` beside it, `NUMBER-WHERE@RANK`; the first one is the present one, and gone once it is done.
`hold@0` keeps rank 0 before publishing until its file is removed.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ORDERS = Path(__file__).parent / "orders"
STEPS = 6
"""Of training before it happens: there is a checkpoint by then."""


def present_order() -> tuple[Path, str] | None:
    """The order that is due, where it is for this rank."""
    for path in sorted(ORDERS.glob("*"), key=lambda path: int(path.name.partition("-")[0])):
        where, _, rank = path.name.partition("-")[2].partition("@")
        return (path, where) if rank == os.environ.get("RANK") else None
    return None


def die(path: Path) -> None:
    with (ORDERS.parent / "deaths").open("a") as log:
        log.write(f"{path.name} {time.time()}\n")
    path.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


def in_forward(path: Path) -> Callable[[ModuleType], None]:
    """In the middle of the layers of a pass."""

    def patch(model: ModuleType) -> None:
        import torch

        calls = 0

        def before(module: Any, _inputs: Any) -> None:
            nonlocal calls
            calls += type(module).__name__.endswith("DecoderLayer") and module.training and torch.is_grad_enabled()
            if calls == 4 * STEPS:
                die(path)

        torch.nn.modules.module.register_module_forward_pre_hook(before)

    return patch


def in_checkpoint(path: Path) -> Callable[[ModuleType], None]:
    """As the states of all ranks are gathered; on rank 0, which writes, with half of the files written."""

    def patch(loop: ModuleType) -> None:
        gather, save = loop.gather_objects, loop.save_checkpoint
        calls = 0

        def gather_objects(value: Any) -> Any:
            nonlocal calls
            calls += sys._getframe(1).f_code.co_name == "save"
            if calls == STEPS and os.environ["RANK"] != "0":
                die(path)
            return gather(value)

        def save_checkpoint(root: Path, step: int, write: Callable[[Path], None], **given: Any) -> Any:
            def half(folder: Path) -> None:
                write(folder)
                if calls == STEPS:
                    (folder / "optimizer.pt").unlink()
                    die(path)

            return save(root, step, half, **given)

        loop.gather_objects, loop.save_checkpoint = gather_objects, save_checkpoint  # type: ignore[attr-defined]

    return patch


def in_publishing(path: Path) -> Callable[[ModuleType], None]:
    """With the stage written, before the rename."""

    def patch(finish: ModuleType) -> None:
        finish.publish = lambda *_: die(path)  # type: ignore[attr-defined]

    return patch


def before_publishing(path: Path) -> Callable[[ModuleType], None]:
    def patch(finish: ModuleType) -> None:
        publish = finish.publish

        def held(*given: Any) -> Any:
            (ORDERS.parent / "held").touch()
            while path.exists():
                time.sleep(0.1)
            return publish(*given)

        finish.publish = held  # type: ignore[attr-defined]

    return patch


PLACES: dict[str, tuple[str, Callable[[Path], Callable[[ModuleType], None]]]] = {
    "forward": ("llm_tuning.trainers.model", in_forward),
    "checkpoint": ("llm_tuning.trainers.loop", in_checkpoint),
    "publishing": ("llm_tuning.run.finish", in_publishing),
    "hold": ("llm_tuning.run.finish", before_publishing),
}


class Patcher:
    """Loads one module as ever, and changes it then."""

    def __init__(self, name: str, patch: Callable[[ModuleType], None]) -> None:
        self._name, self._patch = name, patch

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "RANK" in os.environ and (order := present_order()) is not None:
    name, patch = PLACES[order[1]]
    sys.meta_path.insert(0, Patcher(name, patch(order[0])))  # type: ignore[arg-type]
    importlib.invalidate_caches()
