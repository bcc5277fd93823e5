"""The work folder of a run: held by one process, begun or resumed, and left or removed by what became of it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llm_tuning.api import TrainingSpec, TuningConfig
from llm_tuning.api.tuning import MOST_BATCH
from llm_tuning.core.files import write_json
from llm_tuning.core.room import is_full, says_no_space, volume_full
from llm_tuning.errors import InputError, Problem, TryAgain, TuningError
from llm_tuning.models.layout import CACHE_FOLDER, CHECKPOINTS, DATA_REPORT, MANIFEST, ROWS, RUN_LOCK, WORK_FOLDER
from llm_tuning.models.manifest import Manifest, deciding_settings, read_manifest
from llm_tuning.run.checkpoints import latest_checkpoint
from llm_tuning.run.prepare import Prepared
from llm_tuning.run.rows import RowHashes, hash_rows, tokenise_rows
from llm_tuning.run.spec import RunSpec, read_run_spec

log = logging.getLogger(__name__)

DISK_FULL = "DiskFull"
SHARED_MEMORY = Path("/dev/shm")

_CONTENTS = (
    "the rows of {field:dataset.path}",
    "the rows of {field:dataset.evaluation}",
    "the weights of {field:model.path}",
    "the chat template of {field:model.path}",
    "the weights of {field:model.adapter.model_id}",
)
"""What a run starts from, as a refusal names it; all of them are in the configuration's hash."""
_ROWS = "training.effective_batch_size"
"""The rows of a step, as they are in the configuration's hash."""


@contextmanager
def held(run: Prepared) -> Iterator[None]:
    """Hold the run's work folder, new or as it was left; raises TryAgain where another process holds it."""
    fresh = not run.work.exists()
    with _lock(run.work / RUN_LOCK, run.model_id), fresh_work_removed(run.work, fresh=fresh):
        yield


@contextmanager
def _lock(path: Path, model_id: str) -> Iterator[None]:
    """Hold the lock file, raise TryAgain where it is held. The kernel drops it with the process, so none goes stale."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TryAgain("Busy", f"another process is running {model_id}; wait for it or end it") from None
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return
        # The run that held it finished and removed the folder in between: take the lock of the new one.


def begin_or_resume(run: Prepared, *, show_sample: bool | int) -> RunSpec:
    """Write the run's spec and tokenised rows into its work folder, or find them there; raises InputError.

    The data set is read once: for its rows and their hash at the first start, for its hash alone at a later one. The
    report is written last, so rows that have one are those of `run.json`.
    """
    earlier = read_run_spec(run.work)
    report_file = run.work / DATA_REPORT
    if earlier is not None:
        hashes = RowHashes(earlier.data_hash, earlier.evaluation_hash)
        _refuse_other(earlier, run.spec(hashes))  # the settings, before the file is read
        if report_file.exists():
            spec = run.spec(hash_rows(run.config), created=earlier.created)
            _refuse_other(earlier, spec)
            log.info("data check: passed when this run was started")
            spec.write()
            return spec
    report_file.unlink(missing_ok=True)
    # With one device this process trains, so it imports what transformers needs sooner or later.
    apart = len(run.devices) > 1
    report = tokenise_rows(run.config, run.work / ROWS, cache=run.cache, apart=apart, show_sample=show_sample)
    spec = run.spec(RowHashes.of(report), created=earlier.created if earlier else None)
    if earlier is not None:
        _refuse_other(earlier, spec)
    spec.write()
    write_json(report_file, report.model_dump(mode="json"))
    return spec


def finished(run: Prepared) -> RunSpec | None:
    """Return the spec of this very run if it is finished; raises InputError where another run has the model_id."""
    manifest = read_manifest(run.target)
    if manifest is None:
        if run.target.exists():
            rule = f"{run.target} exists but holds no complete model (no {MANIFEST})"
            raise InputError(Problem("model_id", rule, "choose another or move it away"))
        return None
    spec = run.spec(hash_rows(run.config))
    if manifest.config_hash != spec.config_hash:
        try:
            earlier = TuningConfig.parse(manifest.configuration)
            differences = _differences(earlier, len(manifest.devices), _contents_of(manifest), spec)
        except InputError:
            differences = "it was made by another version of llm-tuning"
        raise InputError(
            Problem(
                "model_id",
                f"{spec.model_id} is finished with another configuration: {differences}",
                "choose another model_id",
            )
        )
    return spec


def _refuse_other(earlier: RunSpec, spec: RunSpec) -> None:
    if earlier.config_hash != spec.config_hash:
        differences = _differences(earlier.config, len(earlier.devices), _contents(earlier), spec)
        raise InputError(
            Problem(
                "model_id",
                f"{spec.model_id} was started with another configuration: {differences}",
                f"choose another model_id, or delete {spec.work} to discard that run",
            )
        )


def _differences(earlier: TuningConfig, devices: int, contents: Mapping[str, str | None], spec: RunSpec) -> str:
    """List what decides the weights and was otherwise in the `earlier` run, on so many devices, from these contents."""
    was = _flat(deciding_settings(earlier, devices))
    now = _flat(deciding_settings(spec.config, len(spec.devices)))
    changed = [
        _rows_differ(earlier.training, devices, spec) if name == _ROWS else f"{name} {was.get(name)}, now {value}"
        for name, value in now.items()
        if was.get(name) != value
    ]
    for name, content in _contents(spec).items():
        before = contents[name]
        if before != content:
            changed.append(f"{name} {_short(before)}, now {_short(content)}")
    return "; ".join(changed) or "it was made by another version of llm-tuning"


def _rows_differ(earlier: TrainingSpec, devices: int, spec: RunSpec) -> str:
    """Say how many rows a step took and takes, and what makes them as many again: no setting has their number."""
    was, ranks = earlier.effective_batch_size(devices), len(spec.devices)
    told = f"a step learned {_product(earlier, devices)}, and would learn {_product(spec.config.training, ranks)}"
    if was % ranks:
        fitting = [count for count in range(1, was + 1) if was % count == 0]
        near = [*[count for count in fitting if count < ranks][-1:], *[count for count in fitting if count > ranks][:1]]
        go = "goes" if was == 1 else "go"
        fit = f"{' or '.join(map(str, near))} rank{'' if near == [1] else 's'}"
        return f"{told}; {_rows(was)} {go} evenly over {fit}, not over {ranks}"
    each, batches = was // ranks, spec.config.training.gradient_accumulation_steps
    if each % batches == 0 and each // batches <= MOST_BATCH:
        return f"{told}; {{set:training.batch_size={each // batches}}} for {_rows(was)} again"
    batches = next(count for count in range(1, each + 1) if each % count == 0 and each // count <= MOST_BATCH)
    fewer = f"{{set:training.gradient_accumulation_steps={batches}}}"
    return f"{told}; {{set:training.batch_size={each // batches}}} and {fewer} for {_rows(was)} again"


def _product(training: TrainingSpec, ranks: int) -> str:
    """Return how the rows of a step come about: `8 rows ({field:training.batch_size} 4 x 2 ranks)`."""
    factors = [f"{{field:training.batch_size}} {training.batch_size}"]
    if training.gradient_accumulation_steps > 1:
        count = training.gradient_accumulation_steps
        factors.append(f"{{field:training.gradient_accumulation_steps}} {count}")
    factors.append(f"{ranks} rank{'s' if ranks > 1 else ''}")
    return f"{_rows(training.effective_batch_size(ranks))} ({' x '.join(factors)})"


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


def _contents(spec: RunSpec) -> dict[str, str | None]:
    """Return the hashes of what a run starts from, by what they are of."""
    return dict(
        zip(
            _CONTENTS,
            (
                spec.data_hash,
                spec.evaluation_hash,
                spec.base_weight_hash,
                spec.template_hash,
                spec.start_adapter_hash,
            ),
            strict=True,
        )
    )


def _contents_of(manifest: Manifest) -> dict[str, str | None]:
    """Return the same of a finished run."""
    rows, start = manifest.dataset, manifest.start_adapter
    evaluation = rows.evaluation if rows else None
    hashes = (
        rows.hash if rows else None,
        evaluation.hash if evaluation else None,
        manifest.base.weight_hash,
        manifest.template_hash,
        start.weight_hash if start else None,
    )
    return dict(zip(_CONTENTS, hashes, strict=True))


def _short(digest: str | None) -> str:
    return f"sha256 {digest[:12]}" if digest else "none"


def _flat(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Flatten nested mappings: `training.seed`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return flat


@contextmanager
def nothing_left_of_a_refusal(output_dir: Path) -> Iterator[None]:
    """Remove an output folder that only a refused run has made, unless a work folder is left in it.

    Empty folders go one by one: a run that begins beside this one at that moment keeps its own.
    """
    fresh = not output_dir.exists()
    try:
        yield
    except InputError:
        work = output_dir / WORK_FOLDER
        if fresh and not (work.is_dir() and any(work.iterdir())):
            shutil.rmtree(output_dir / CACHE_FOLDER, ignore_errors=True)
            for folder in (work, output_dir):
                with suppress(OSError):
                    folder.rmdir()
        raise


@contextmanager
def fresh_work_removed(work: Path, *, fresh: bool) -> Iterator[None]:
    """Remove a `fresh` work folder that came no further than a refusal; one with a checkpoint always stays.

    A loss that is no number is a refusal, too, after hours of training that the next start continues from.
    """
    try:
        yield
    except InputError:
        if fresh and latest_checkpoint(work / CHECKPOINTS) is None:
            shutil.rmtree(work, ignore_errors=True)
        raise


@contextmanager
def disk_errors_explained(output_dir: Path, machine: str = "this machine") -> Iterator[None]:
    """Raise a TryAgain that says which disk is full: that of the output, or one of `machine` alone.

    Libraries raise many types for it, so the free space decides where the error does not say it.
    """
    try:
        yield
    except TuningError:
        raise
    except Exception as error:
        if not is_full(output_dir):
            if own := next(filter(is_full, (Path(os.environ.get("TMPDIR", "/tmp")), SHARED_MEMORY)), None):
                said = f"no space is left in {own} of {machine}: {type(error).__name__}: {error}; make room there"
                raise TryAgain(DISK_FULL, said) from error
            if not says_no_space(error):
                raise
        raise volume_full(output_dir) from error
