"""What a refusal may remove: folders that only the refused start has made, and nothing that can be gone on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_tuning.errors import InputError
from llm_tuning.models.layout import CACHE_FOLDER, CHECKPOINTS, WORK_FOLDER
from llm_tuning.run.checkpoints import latest_checkpoint


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

    A full disk and a loss that is no number are refusals, too, after hours of training that the next start goes on
    from.
    """
    try:
        yield
    except InputError:
        if fresh and latest_checkpoint(work / CHECKPOINTS) is None:
            shutil.rmtree(work, ignore_errors=True)
        raise
