"""Bring the base and the rows of a configuration to this disk where they are given by name."""

from __future__ import annotations

import os
from pathlib import Path

from llm_tuning.api import RunOptions, TuningConfig
from llm_tuning.core.console import forced_offline
from llm_tuning.errors import InputError, Problem
from llm_tuning.models.layout import WORK_FOLDER
from llm_tuning.models.manifest import read_manifest
from llm_tuning.run.spec import read_run_spec
from llm_tuning.sources.uri import Kind


def with_local_paths(config: TuningConfig, options: RunOptions) -> TuningConfig:
    """Return `config` with paths of this disk in the place of URIs and hub names, fetched where they are not here.

    A run that was begun before keeps the commits it began with. Raises InputError with all that is wrong with the URIs
    before anything is fetched, SourceRefused and SourceBusy.
    """
    if not any(_may_be_source(text) for text in _given(config)):
        return config
    from llm_tuning.progress.fetching import fetch_shown
    from llm_tuning.sources.given import is_offline, local_path, source_given

    model, dataset, held_out = config.model.path, config.dataset.path, config.dataset.evaluation
    problems: list[Problem] = []
    for text, kind in ((model, Kind.MODEL), (dataset, Kind.DATASET), (held_out, Kind.DATASET)):
        try:
            source_given(text or "", kind)
        except InputError as error:
            problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    root, offline = Path(options.sources_dir), is_offline(os.environ) and not forced_offline()
    earlier = _earlier(options)

    def local(text: str, kind: Kind) -> str:
        with fetch_shown() as watch:
            return local_path(text, kind, root, commit=_commit(text, kind, earlier), watch=watch, offline=offline)

    paths = {"path": local(dataset, Kind.DATASET)}
    if held_out is not None:
        paths["evaluation"] = local(held_out, Kind.DATASET)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": local(model, Kind.MODEL)}),
            "dataset": config.dataset.model_copy(update=paths),
        }
    )


def _given(config: TuningConfig) -> list[str]:
    return [config.model.path, config.dataset.path, config.dataset.evaluation or ""]


def _may_be_source(text: str) -> bool:
    """Return whether the disk has to be asked at all: most paths exist."""
    return "/" in text and not Path(text).exists()


def _earlier(options: RunOptions) -> TuningConfig | None:
    """Return the configuration that a run of this model_id began with; None for a new one."""
    if options.model_id is None:
        return None
    output_dir = Path(options.output_dir)
    try:
        if (spec := read_run_spec(output_dir / WORK_FOLDER / options.model_id)) is not None:
            return spec.config
        manifest = read_manifest(output_dir / options.model_id)
        return TuningConfig.parse(manifest.configuration) if manifest is not None else None
    except InputError:
        return None  # the run itself says what is wrong with it


def _commit(text: str, kind: Kind, earlier: TuningConfig | None) -> str:
    """Return the commit of what `text` names that the earlier start has used, "" where it used something else."""
    if earlier is None:
        return ""
    from llm_tuning.sources.given import source_given
    from llm_tuning.sources.store import selection_of, source_at

    source = source_given(text, kind)
    for path in _given(earlier) if source is not None else ():
        used = source_at(path) if path else None
        if source and used and (used.record.uri, used.record.selection) == (source.repository, selection_of(source)):
            return used.record.commit
    return ""
