"""The plan for the engine of a pod: made once, by what the claim holds, before it starts.

An adapter that is not there, is not fit or cannot be read in time is no fault here: it is refused by itself later on.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from llm_tuning.agent.aside import BRIEFLY_SECONDS, StillRunning, within
from llm_tuning.agent.contract import ENGINE_PORT, DesiredRoutes, ServeInput
from llm_tuning.core.files import read_file
from llm_tuning.engines.plan import EnginePlan, Lookup
from llm_tuning.engines.vllm.adapter import ServedAdapter, inspect_adapter
from llm_tuning.engines.vllm.pod import Pod, plan_pod
from llm_tuning.engines.vllm.tensor_names import read_lookup
from llm_tuning.errors import InputError, Problem, TryAgain
from llm_tuning.models.adapter import trained_base
from llm_tuning.models.base import inspect_base, weight_hash
from llm_tuning.models.layout import BASE_HASHES, CACHE_FOLDER

log = logging.getLogger(__name__)

VOLUME_SECONDS = 60.0
"""For the headers and small files of the base."""
ADAPTER_SECONDS = 20.0
"""For an adapter's files; one that takes longer is left out of the plan, as one that is not there."""


def make_plan(
    given: ServeInput, desired: DesiredRoutes, root: Path, *, scratch: Path, engine_port: int = ENGINE_PORT
) -> EnginePlan:
    """Decide; `root` is the mounted claim, `scratch` a folder to write to.

    Raises InputError for an unfit base, TryAgain where its volume does not answer.
    """
    try:
        base = within(VOLUME_SECONDS, lambda: inspect_base(_inside(root, given.model_path)))
    except StillRunning as running:
        raise TryAgain("VolumeSilent", f"model {given.model_path}: its volume does not answer: {running}") from None
    pod = Pod(
        base=base,
        base_name=given.base_name,
        base_hash=weight_hash(base, _own_hashes(root, scratch)),
        base_path=given.model_path,
        settings=given.vllm,
        gpus=given.gpus,
        memory_bytes=given.memory_bytes,
        port=engine_port,
    )
    # An adapter of layers that see or hear is one: the engine is then started with them.
    adapters = _fit_adapters(desired, root, pod.base_hash, read_lookup(base, towers=True))
    return plan_pod(pod, adapters, wanted=len(desired.model_ids), rank=desired.rank, scratch=scratch)


def _fit_adapters(desired: DesiredRoutes, root: Path, base_hash: str, lookup: Lookup) -> list[ServedAdapter]:
    found = []
    patience = ADAPTER_SECONDS
    for name in desired.model_ids:
        try:
            adapter = within(patience, partial(_fit_adapter, root / "models" / name, base_hash, lookup))
        except StillRunning:
            patience = BRIEFLY_SECONDS
        except Exception:  # whatever its files hold, the engine starts for the others
            log.debug("%s is left out of the plan", name, exc_info=True)
        else:
            found += [adapter] if adapter is not None else []
    return found


def _fit_adapter(path: Path, base_hash: str, lookup: Lookup) -> ServedAdapter | None:
    return inspect_adapter(path, None, lookup) if trained_base(path).weight_hash in ("", base_hash) else None


def _inside(root: Path, relative: str) -> Path:
    path = root / relative
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        rule = "leads out of the volume by a symbolic link"
        raise InputError(Problem(f"model {relative}", rule, "copy the files into the claim", field="model.path"))
    return path


def _own_hashes(root: Path, scratch: Path) -> Path:
    """Copy the base hashes that trainers have noted, to read and write: the claim is mounted read-only here."""
    own = scratch / BASE_HASHES
    with suppress(OSError):
        own.write_bytes(read_file(root / "models" / CACHE_FOLDER / BASE_HASHES))
    return own
