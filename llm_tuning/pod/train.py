"""`train`: the run itself. Started again with the same input it resumes, and a finished run gives its result again."""

from __future__ import annotations

import os
from pathlib import Path

from llm_tuning.core.console import quiet_libraries
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.manifest import read_manifest
from llm_tuning.models.registry import Registry
from llm_tuning.pod.contract import PodReason, TrainResult
from llm_tuning.pod.job import PodJob
from llm_tuning.pod.outcome import result_of
from llm_tuning.run.devices import gpu_defaults

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def run(job: PodJob) -> TrainResult:
    """Train, publish and register; raises InputError, TryAgain or what a library raises."""
    from llm_tuning.run.nodes import NodeGroup
    from llm_tuning.run.tune import join_run, tune

    given = job.input
    if given.spec.model.adapter is not None and given.start_model_id is None:
        raise InputError(Problem("startModelId", "is missing though the spec has a start adapter"))
    quiet_libraries()
    os.environ.update(gpu_defaults(os.environ))
    config, options = job.config(), job.options()
    job.make_models_folder()
    _use_the_pods_cpus(processes=len(options.devices.split(",")))
    if (nodes := job.nodes()) is None:
        return result_of(Registry(job.models), tune(config, options))
    target = Path(options.output_dir) / str(options.model_id)
    if nodes.index == 0 or read_manifest(target) is None:  # what is published already, node 0 does not stay for
        with NodeGroup(nodes) as group:
            if nodes.index == 0:
                return result_of(Registry(job.models), tune(config, options, group))
            join_run(options, group)
    message = f"{nodes.of_node(nodes.index)}: done; the pod of index 0 has the result"
    return TrainResult(ok=True, reason=PodReason.TRAINED, message=message, model_id=given.model_id)


def _use_the_pods_cpus(*, processes: int) -> None:
    """Set as many threads as the CPU limit allows: torch counts the node's cores, and would be throttled on them."""
    try:
        quota, period = CPU_QUOTA.read_text().split()
        cpus = max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # `max`: no limit
        return
    cpus = min(cpus, len(os.sched_getaffinity(0)))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpus // processes)))
