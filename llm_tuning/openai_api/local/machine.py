"""What of this machine serves: its vLLM, its cards, its memory, and whether a training has room beside."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.core.cards import VISIBLE, card_order, listed_cards
from llm_tuning.core.host_memory import free_host_bytes
from llm_tuning.engines.vllm.environment import cpu_environment
from llm_tuning.engines.vllm.install import Vllm, find_vllm, gpu_count
from llm_tuning.errors import InputError
from llm_tuning.models.base import inspect_base
from llm_tuning.planning.plan import make_plan

GIB = 2**30
ENGINE_BYTES = 3 * GIB
"""Of vLLM's processes on the CPU, without weights and cache."""
TRAINER_BYTES = GIB
"""Of a trainer's process, without what its plan counts."""
NUMBER_BYTES = 4
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


@dataclass(frozen=True)
class Machine:
    """What serves here."""

    vllm: Vllm
    cards: tuple[str, ...]
    """Numbers or identifiers of the GPUs that this process may use."""

    def serving_cards(self, service: InferenceServiceView) -> tuple[str, ...]:
        """Return the GPUs of an engine: the last ones, since trainings take the first; none for the CPU."""
        return () if self.vllm.cpu_build else self.cards[-max(1, service.spec.resources.gpus) :]

    def engine_environment(self, cards: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
        """Return what an engine on these cards is given besides its plan's."""
        if cards:
            return {VISIBLE: ",".join(cards)} | card_order(environment)
        own = cpu_environment(free_host_bytes())
        return {name: value for name, value in own.items() if name not in environment}

    def has_room(self, job: TuningJobView, service: InferenceServiceView, root: Path, *, running: bool) -> bool:
        """Return whether a training and an engine have room at the same time; `running`: the engine has its memory.

        On GPUs each has cards of its own, for either takes all the memory of one. On the CPU it is by estimate.
        """
        training, serving = min(job.spec.resources.gpus, len(self.cards)), len(self.serving_cards(service))
        if training and serving:
            return training + serving <= len(self.cards)
        if training or serving:
            return True
        needed = _training_bytes(job, root) + (self._cache_bytes() if running else self._engine_bytes(service, root))
        return needed <= free_host_bytes()

    def _engine_bytes(self, service: InferenceServiceView, root: Path) -> int:
        try:
            parameters = inspect_base(root / str(service.spec.model.path)).parameters
        except InputError:
            return 0  # the plan for the engine will say so
        return ENGINE_BYTES + parameters * NUMBER_BYTES + self._cache_bytes()

    def _cache_bytes(self) -> int:
        """Return the engine's cache, which it takes only as it is used."""
        given = os.environ.get(CACHE_VARIABLE) or cpu_environment(free_host_bytes())[CACHE_VARIABLE]
        return int(float(given) * GIB)


def find_machine(project: Path, environment: Mapping[str, str]) -> Machine:
    """Look what there is; takes seconds. Raises InputError, which says what to install."""
    visible = environment.get(VISIBLE)
    cards = listed_cards(visible) if visible is not None else [str(number) for number in range(gpu_count() or 0)]
    return Machine(find_vllm(project, environment), tuple(cards))


def _training_bytes(job: TuningJobView, root: Path) -> int:
    """Estimate a training's memory on the CPU; 0 for one whose base cannot be read, which will say so itself."""
    resources = job.spec.resources
    spec = job.spec.model_copy(update={"resources": resources.model_copy(update={"gpus": 0})})
    try:
        plan = make_plan(spec, base=root / str(spec.model.path), dataset=None)
    except InputError:
        return 0
    return max(1, resources.gpus) * (TRAINER_BYTES + int(plan.device_gib * GIB))
