"""One tuning run from configuration to registered adapter: check everything, then train, then publish.

What can be wrong is found torch-free and all together (`run.prepare`), before a model is loaded. What runs afterwards
is in `run.rank`: in this process with one device, in processes of their own with several.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.core.stopping import raise_if_stopped, stop_on_signals
from llm_tuning.errors import PLAIN, InputError, Problem, TryAgain, Words
from llm_tuning.models.layout import CHECKPOINTS, RUN_SPEC
from llm_tuning.models.manifest import read_manifest
from llm_tuning.models.registry import Registry
from llm_tuning.run.checkpoints import newest_whole, require_room_beside
from llm_tuning.run.checks import BASE, DATASET, EVALUATION, of_field
from llm_tuning.run.nodes import MISSING
from llm_tuning.run.prepare import prepare
from llm_tuning.run.rows import check_rows
from llm_tuning.run.spec import RunSpec, read_run_spec
from llm_tuning.run.work import (
    begin_or_resume,
    disk_errors_explained,
    finished,
    held,
    nothing_left_of_a_refusal,
)

if TYPE_CHECKING:
    from llm_tuning.data.report import Report
    from llm_tuning.run.nodes import NodeGroup

log = logging.getLogger(__name__)

SEEN_SECONDS = 20
"""For another node to see a new file. NFS may remember for up to 60 s that there was none, but torchrun's agents wait
30 s for each other; the next try sees it."""
SEEN_POLL_SECONDS = 1


def tune(config: TuningConfig, options: RunOptions, group: NodeGroup | None = None) -> str:
    """Run `config` to the end and return the model_id; a started or finished one is resumed or returned.

    With `group` this is node 0 of several, which each have the devices of `options`; the others `join_run`.
    Raises InputError (checkpoints that were there are still there, and no model folder is left) or TryAgain (the same
    call continues later).
    """
    machine = "this machine" if group is None else group.nodes.name(0)
    with _guarded(Path(options.output_dir), machine):
        run = prepare(config, options, nodes=1 if group is None else len(group.nodes.hosts))
        spec = finished(run)
        if spec is None:
            with held(run):
                spec = finished(run)  # another process may have finished it meanwhile
                if spec is None:
                    log.info("%s", run.targets)
                    spec = begin_or_resume(run, show_sample=options.show_sample)
                    raise_if_stopped("before the training")
                    _see_where_it_resumes(newest_whole(spec.work / CHECKPOINTS))
                    _train(spec, group)
                    return spec.model_id
        log.info("%s is finished already: %s", spec.model_id, spec.target)
        _complete(spec)
        return spec.model_id


def join_run(options: RunOptions, group: NodeGroup) -> None:
    """Lend the devices of this node to the run that node 0 does; returns when its ranks here have ended well.

    Raises as `tune` does.
    """
    from llm_tuning.run.launch import launch

    output_dir = Path(options.output_dir)
    target, own = output_dir / str(options.model_id), group.nodes.name(group.nodes.index)
    with stop_on_signals(), disk_errors_explained(output_dir, own):
        work = group.await_work(lambda: read_manifest(target) is not None)
        if work is not None:
            launch(_await_spec(work, group), group)


def _await_spec(work: Path, group: NodeGroup) -> RunSpec:
    """Read the spec that node 0 has written; raises TryAgain where this node does not come to see it."""
    deadline = time.monotonic() + SEEN_SECONDS
    while (spec := read_run_spec(work)) is None:
        raise_if_stopped("before the ranks began")
        if (trouble := group.find_trouble()) is not None:
            raise trouble
        if time.monotonic() > deadline:
            nodes = group.nodes
            raise TryAgain(
                MISSING,
                f"{nodes.name(nodes.index)} does not see {work / RUN_SPEC}, which {nodes.name(0)} has written, within "
                f"{SEEN_SECONDS} s: see whether both mount the same volume, and for how long its file system remembers "
                "what was not there",
            )
        time.sleep(SEEN_POLL_SECONDS)
    return spec


def check_run(config: TuningConfig, options: RunOptions, *, words: Words = PLAIN) -> Report:
    """Run all the checks of `tune` and nothing else: no work folder is made, no row is written, nothing is trained.

    The hash of the base stays cached in the output folder, so the run itself need not read the weights again. The
    report is in `words`.
    Raises InputError with every problem, the data set's own too where another thing is wrong as well, or TryAgain.
    """
    with _guarded(Path(options.output_dir)):
        try:
            run = prepare(config, options)
        except InputError as error:
            raise InputError([*error.problems, *_further_data_problems(config, error)]) from None
        return of_field(BASE, lambda: check_rows(run.config, cache=run.cache, words=words))  # rows' have their own


def _further_data_problems(config: TuningConfig, error: InputError) -> tuple[Problem, ...]:
    """Find what is wrong with the rows by themselves, for a run that is refused for other things already."""
    fields = {problem.field for problem in error.problems}
    if DATASET in fields:
        return ()  # there is no file to look into
    if EVALUATION in fields:
        config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"evaluation": None})})
    try:
        check_rows(config, with_tokens=False)
    except InputError as refused:
        return refused.problems
    return ()


@contextmanager
def _guarded(output_dir: Path, machine: str = "this machine") -> Iterator[None]:
    """Turn signals into stop requests and a full disk into one problem; after a refusal remove what it made."""
    with stop_on_signals(), nothing_left_of_a_refusal(output_dir), disk_errors_explained(output_dir, machine):
        yield


def _see_where_it_resumes(found: tuple[int, Path] | None) -> None:
    """Say where; raises TryAgain, before any card is used, where the next checkpoint has no room beside that one."""
    if found is not None:
        step, folder = found
        require_room_beside(folder)
        log.info("resumed from step %d (%s)", step, folder.name)


def _complete(spec: RunSpec) -> None:
    """Do what a run that was killed between publishing and its end has left."""
    from llm_tuning.run.finish import finish_published

    finish_published(spec)
    Registry(spec.output_dir).heal(published=spec.model_id)


def _train(spec: RunSpec, group: NodeGroup | None) -> None:
    if len(spec.devices) == 1:
        from llm_tuning.run.rank import Place, run_rank

        run_rank(spec, Place())
    else:
        from llm_tuning.run.launch import launch

        if group is not None:
            group.await_others()
            group.hand_on(spec.work)
        launch(spec, group)
