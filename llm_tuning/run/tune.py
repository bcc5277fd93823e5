"""One tuning run from configuration to registered adapter: check everything, then train, then publish.

What can be wrong is found here, torch-free and all together, before a model is loaded. What runs afterwards is in
`run/rank.py`: in this process with one device, in processes of their own with several.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm_tuning.api import LoraSpec, RunOptions, TuningConfig
from llm_tuning.api.tuning import device_names, form_model_id
from llm_tuning.core.files import file_hash, read_json, write_json
from llm_tuning.core.stopping import raise_if_stopped, stop_on_signals
from llm_tuning.errors import InputError, Problem, TryAgain, TuningError
from llm_tuning.models.base import BaseModel, check_writable, inspect_base, weight_hash
from llm_tuning.models.layout import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_HASHES,
    CACHE_FOLDER,
    CHECKPOINTS,
    DATA_REPORT,
    ROWS,
    RUN_LOCK,
)
from llm_tuning.models.manifest import Manifest, config_hash, deciding_settings, read_manifest
from llm_tuning.models.registry import Registry
from llm_tuning.models.trainable import check_trainable
from llm_tuning.modes import MODES
from llm_tuning.run.checkpoints import newest_whole
from llm_tuning.run.spec import RunSpec, read_run_spec
from llm_tuning.run.work import fresh_work_removed, nothing_left_of_a_refusal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from llm_tuning.data.report import Report

log = logging.getLogger(__name__)

T = TypeVar("T")
BASE, ADAPTER, DATASET, TRACKING, OUTPUT = (
    "model.path",
    "model.adapter.modelId",
    "dataset.path",
    "tracking.uri",
    "output_dir",
)
"""Where in the API the subject of a check comes from: `Problem.field`."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
FULL_BYTES = 256 * 1024
"""A disk with less room than this is full: a run writes little at a time that is smaller."""


def tune(config: TuningConfig, options: RunOptions) -> str:
    """Run `config` to the end and return the model_id; a started or finished one is resumed or returned.

    Raises InputError (nothing was trained, no model folder is left) or TryAgain (the same call goes on later).
    """
    output_dir = Path(options.output_dir)
    with stop_on_signals(), nothing_left_of_a_refusal(output_dir), _disk_errors_as_input_errors(output_dir):
        spec = _prepare(config, options)
        manifest = _finished(spec)
        if manifest is None:
            with _locked(spec):
                manifest = _finished(spec)  # another process may have finished it meanwhile
                if manifest is None:
                    _check_data(spec, show_sample=options.show_sample)
                    raise_if_stopped("before the training")
                    newest_whole(spec.work / CHECKPOINTS)
                    _train(spec)
                    return spec.model_id
        log.info("%s is finished already: %s", spec.model_id, spec.target)
        _complete(spec)
        return spec.model_id


def check_run(config: TuningConfig, options: RunOptions) -> Report:
    """All the checks of `tune` and nothing else: no work folder is made, no row is written, nothing is trained.

    The hash of the base stays remembered in the output folder, so the run itself need not read the weights again.
    Raises InputError with every problem, the dataset's own too where another thing is wrong as well, or TryAgain.
    """
    output_dir = Path(options.output_dir)
    with stop_on_signals(), nothing_left_of_a_refusal(output_dir), _disk_errors_as_input_errors(output_dir):
        try:
            spec = _prepare(config, options)
        except InputError as error:
            raise InputError([*error.problems, *_further_data_problems(config, error)]) from None
        return _of_field(BASE, lambda: _read_data(spec.config, out=None, encoder=None))  # those of rows say it


def _further_data_problems(config: TuningConfig, error: InputError) -> tuple[Problem, ...]:
    """What is wrong with the rows by themselves, for a run that is refused for other things already."""
    if any(problem.field == DATASET for problem in error.problems):
        return ()  # there is no file to look into
    try:
        _read_data(config, out=None, encoder=None, with_tokens=False)
    except InputError as refused:
        return refused.problems
    return ()


def _prepare(config: TuningConfig, options: RunOptions) -> RunSpec:
    """Look at all that the run needs and resolve it; raises one InputError with every problem found."""
    from llm_tuning.data.chat import template_hash
    from llm_tuning.data.reading import data_hash

    output_dir = Path(options.output_dir)
    dataset, base_path = Path(config.dataset.path), Path(config.model.path)
    found = _Collected()
    devices = device_names(options.devices)
    found.run(OUTPUT, lambda: check_writable(output_dir))
    found.run(TRACKING, lambda: _check_tracking(config.tracking.uri))
    base = found.run(BASE, lambda: inspect_base(base_path))
    if base is not None:
        found.run(BASE, lambda: check_trainable(base))
    template = found.run(BASE, lambda: template_hash(base_path)) if base is not None else None
    rows = found.run(DATASET, lambda: data_hash(dataset))
    start = found.run(ADAPTER, lambda: _start_adapter(config, output_dir))
    found.raise_if_any()
    assert base is not None
    assert template is not None
    assert rows is not None

    base_hash = weight_hash(base, output_dir / CACHE_FOLDER / BASE_HASHES)
    if start is not None:
        found.run(ADAPTER, lambda: _check_start_adapter(start, base, base_hash, template))
        resolved = found.run("", lambda: _lora_of(start, config.lora))
        found.raise_if_any()
        config = config.model_copy(update={"lora": resolved})
    start_hash = start.manifest.weight_hash if start else None
    now = int(time.time())
    return RunSpec(
        model_id=options.model_id or form_model_id(config.mode, base.name, created=now, digest=secrets.token_hex(3)),
        config=config,
        config_hash=config_hash(
            config,
            devices=len(devices),
            base_weight_hash=base_hash,
            data_hash=rows,
            template_hash=template,
            start_adapter_weight_hash=start_hash,
        ),
        devices=devices,
        output_dir=output_dir,
        base_name=base.name,
        base_weight_hash=base_hash,
        template_hash=template,
        data_hash=rows,
        start_adapter=start.path if start else None,
        start_adapter_hash=start_hash,
        created=now,
    )


class _Collected:
    """Runs checks one after the other and keeps every problem, so that a user sees all of them at once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def run(self, field: str, check: Callable[[], T]) -> T | None:
        """What `check` returns, None if it found a problem. `field` is where in the API its subject comes from."""
        try:
            return _of_field(field, check)
        except InputError as error:
            self._problems.extend(error.problems)
            return None

    def raise_if_any(self) -> None:
        if self._problems:
            raise InputError(self._problems)


def _of_field(field: str, check: Callable[[], T]) -> T:
    """What `check` returns; problems that it raises without an API field of their own are given `field`."""
    try:
        return check()
    except InputError as error:
        raise InputError([replace(p, field=p.field or field) for p in error.problems]) from None


@dataclass(frozen=True)
class _StartAdapter:
    path: Path
    manifest: Manifest


def _check_tracking(uri: str | None) -> None:
    from llm_tuning.tracking import check_tracking_uri

    if uri is not None and (problems := check_tracking_uri(uri)):
        raise InputError(problems)


def _start_adapter(config: TuningConfig, output_dir: Path) -> _StartAdapter | None:
    if config.model.adapter is None:
        return None
    model_id = config.model.adapter.model_id
    manifest = read_manifest(output_dir / model_id)
    if manifest is None:
        raise InputError(
            Problem(
                "model.adapter.modelId",
                f"{model_id!r} is no finished adapter in {output_dir}",
                "see `tune-llm registry list` for those that are",
            )
        )
    folder = output_dir / model_id
    for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
        if not (folder / name).is_file() or file_hash(folder / name) != manifest.files.get(name):
            raise InputError(
                Problem(
                    "model.adapter.modelId",
                    f"{folder / name} is not the file that {model_id} was published with",
                    "copy the adapter again, or choose another",
                )
            )
    return _StartAdapter(folder, manifest)


def _check_start_adapter(start: _StartAdapter, base: BaseModel, base_hash: str, template: str) -> None:
    of, where = start.manifest, "model.adapter.modelId"
    if of.base.weight_hash != base_hash:
        raise InputError(
            Problem(
                where,
                f"{of.model_id} belongs to base {of.base.name} (weights {of.base.weight_hash[:12]}), "
                f"not to {base.name} (weights {base_hash[:12]})",
                "give the base it was trained on, or another adapter",
            )
        )
    if of.template_hash != template:
        raise InputError(
            Problem(
                where,
                f"{of.model_id} was trained with another chat template ({of.template_hash[:12]}, "
                f"the base now has {template[:12]})",
                "restore the base's chat template",
            )
        )


def _lora_of(start: _StartAdapter, asked: LoraSpec) -> LoraSpec:
    """The start adapter's own shape; what was asked for explicitly and differs is refused."""
    adapter = read_json(start.path / ADAPTER_CONFIG)
    targets = adapter["target_modules"]
    has = {
        "rank": adapter["r"],
        "alpha": adapter["lora_alpha"],
        "target_modules": targets if isinstance(targets, str) else ",".join(sorted(targets)),
    }
    problems = [
        Problem(
            f"lora.{name}",
            f"is {getattr(asked, name)} but the start adapter {start.manifest.model_id} has {value}",
            "leave it out: training goes on with the adapter's own",
        )
        for name, value in has.items()
        if name in asked.model_fields_set and name != "target_modules" and getattr(asked, name) != value
    ]
    if problems:
        raise InputError(problems)
    return LoraSpec(**has, dropout=asked.dropout)


def _finished(spec: RunSpec) -> Manifest | None:
    """The manifest of this very run if it is finished; raises InputError where the model_id is taken by another."""
    manifest = read_manifest(spec.target)
    if manifest is None:
        if spec.target.exists():
            raise InputError(
                Problem("model_id", f"{spec.target} exists and holds no whole model", "choose another or move it away")
            )
        return None
    if manifest.config_hash != spec.config_hash:
        try:
            earlier = TuningConfig.parse(manifest.configuration)
            differences = _differences(earlier, len(manifest.devices), spec)
        except InputError:
            differences = "its manifest is of another version"
        raise InputError(
            Problem(
                "model_id",
                f"{spec.model_id} is finished with another configuration: {differences}",
                "choose another model_id",
            )
        )
    return manifest


def _differences(earlier: TuningConfig, devices: int, spec: RunSpec) -> str:
    """What decides the weights and was set otherwise in the `earlier` run, on so many devices."""
    was = _flat(deciding_settings(earlier, devices))
    now = _flat(deciding_settings(spec.config, len(spec.devices)))
    changed = [f"{name} {was.get(name)}, now {value}" for name, value in now.items() if was.get(name) != value]
    return "; ".join(changed) or "not the settings: the data, base, template or start adapter"


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested mappings as one: `training.seed`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return flat


def _complete(spec: RunSpec) -> None:
    """What a run killed between publishing and its end has left to do."""
    from llm_tuning.run.finish import finish_published

    finish_published(spec)
    Registry(spec.output_dir).heal(published=spec.model_id)


@contextmanager
def _locked(spec: RunSpec) -> Iterator[None]:
    """Hold the run's work folder, new or resumed; see `fresh_work_removed`."""
    fresh = not spec.work.exists()
    with _lock(spec), fresh_work_removed(spec.work, fresh=fresh):
        _resume_or_begin(spec)
        yield


@contextmanager
def _lock(spec: RunSpec) -> Iterator[None]:
    """The kernel drops the lock with the process, so none goes stale."""
    path = spec.work / RUN_LOCK
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TryAgain("Busy", f"another process is running {spec.model_id}; wait for it or end it") from None
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return
        # The run that held it finished and removed the folder in between: take the lock of the new one.


def _resume_or_begin(spec: RunSpec) -> None:
    earlier = read_run_spec(spec.work)
    if earlier is not None and earlier.config_hash != spec.config_hash:
        differences = _differences(earlier.config, len(earlier.devices), spec)
        raise InputError(
            Problem(
                "model_id",
                f"{spec.model_id} was started with another configuration: {differences}",
                f"choose another model_id, or remove {spec.work} to give that run up",
            )
        )
    (spec if earlier is None else spec.model_copy(update={"created": earlier.created})).write()


def _check_data(spec: RunSpec, *, show_sample: bool) -> None:
    """Check and tokenise the rows into the work folder; done once, also over resumes."""
    from llm_tuning.data.sample import render_sample

    done = spec.work / DATA_REPORT
    if done.exists():
        log.info("data check: passed when this run was started")
        return
    config, base = spec.config, Path(spec.config.model.path)
    encoder = None if (base / "tokenizer.json").exists() else _slow_tokenizer(base)
    report = _read_data(config, out=spec.work / ROWS, encoder=encoder)
    if report.data_hash != spec.data_hash:
        raise TryAgain("DatasetChanged", f"{config.dataset.path} changed while it was read; start again")
    log.info("%s", report.summary())
    if show_sample or sys.stderr.isatty():
        color = sys.stderr.isatty()
        sample = render_sample(
            config.dataset.path, form=MODES[config.mode].rows, tokenizer_dir=base, encoder=encoder, color=color
        )
        sys.stderr.write(sample)  # not a log line: logs never hold dataset text
    write_json(done, report.model_dump(mode="json"))


def _read_data(
    config: TuningConfig, *, out: Path | None, encoder: Tokenizer | None, with_tokens: bool = True
) -> Report:
    from llm_tuning.data.check import check_dataset

    return check_dataset(
        config.dataset.path,
        form=MODES[config.mode].rows,
        tokenizer_dir=Path(config.model.path) if with_tokens else None,
        max_length=config.training.max_length,
        skip_invalid_rows=config.dataset.skip_invalid_rows,
        out=out,
        encoder=encoder,
    )


def _slow_tokenizer(base: Path) -> Tokenizer:
    """The tokenizer of a base without tokenizer.json, made by transformers (which imports torch)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _train(spec: RunSpec) -> None:
    if len(spec.devices) == 1:
        from llm_tuning.run.rank import Place, run_rank

        run_rank(spec, Place())
    else:
        from llm_tuning.run.launch import launch

        launch(spec)


@contextmanager
def _disk_errors_as_input_errors(output_dir: Path) -> Iterator[None]:
    """A full disk is one sentence. What the libraries make of it has many types, so the disk itself is asked."""
    try:
        yield
    except TuningError:
        raise
    except Exception as error:
        is_full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not is_full and not (output_dir.exists() and shutil.disk_usage(output_dir).free < FULL_BYTES):
            raise
        raise InputError(
            Problem(
                f"output_dir {output_dir}",
                "no space is left on the disk",
                "make room and start the same model_id again, or give another --output_dir",
                field=OUTPUT,
            )
        ) from error
