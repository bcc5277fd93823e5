"""Fetch a source: the whole story, from a URI to a folder that is whole.

resolve the commit once  ->  is it here already?  ->  list, choose, refuse  ->  be the one who fetches, or wait for it
->  is there room?  ->  small files first, refuse by what they hold  ->  the rest, in parallel  ->  rename to its place
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.core.stopping import raise_if_stopped
from llm_tuning.errors import InputError, Problem
from llm_tuning.sources import store
from llm_tuning.sources.claim import claimed
from llm_tuning.sources.filling import ClaimLost, Filling, Plan, too_small
from llm_tuning.sources.origin import Origin, origin_of
from llm_tuning.sources.pace import Meter, Transfer, Watch, silent
from llm_tuning.sources.patience import Limits, Patience
from llm_tuning.sources.reasons import SourceRefused, Terminal
from llm_tuning.sources.selection import select
from llm_tuning.sources.store import Stored
from llm_tuning.sources.uri import Source

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_KEEPS_WORK = (Terminal.ROOM, Terminal.HASH, Terminal.ACCESS)
"""Refusals after which the same fetch may go on from what is there: more room, another token."""


@dataclass(frozen=True)
class Fetched:
    """A source on this disk, and what it took."""

    stored: Stored
    moved: int = 0
    """Bytes that came over the network to this process: 0 where it was here already, or another one fetched it."""
    asked: bool = True
    """Whether the origin was asked anything at all."""

    @property
    def path(self) -> Path:
        """What a run takes for the URI: a folder, or a file of rows."""
        return self.stored.path

    @property
    def commit(self) -> str:
        return self.stored.record.commit


def fetch(
    source: Source,
    root: Path,
    *,
    commit: str = "",
    origin: Origin | None = None,
    watch: Watch = silent,
    limits: Limits | None = None,
) -> Fetched:
    """Bring `source` below the folder `root`, or find it there; returns where it lies.

    `commit` is one that an earlier call has resolved: it is used as it is, and where it is here nobody is asked.
    Raises SourceRefused (terminal), SourceBusy (passing; what is there is kept), TryAgain on a request to stop, and
    InputError where the folder cannot be written.
    """
    limits = limits or Limits()
    commit = commit or (source.revision if source.is_pinned else source.sha256)
    if commit and (found := store.find(root, source, commit)) is not None:
        return Fetched(found, asked=False)
    origin = origin or origin_of(source)
    resolving = Patience(limits, Meter(), watch)
    if not commit:
        commit = resolving.run(lambda: origin.resolve(source))
        if (found := store.find(root, source, commit)) is not None:
            return Fetched(found)
    listing = resolving.run(lambda: origin.listing(source, commit))
    plan = Plan(origin, source, root, listing, select(source, listing.files))
    moved = 0
    while True:
        patience = Patience(limits, Meter(plan.size), watch)
        try:
            _fill_or_wait(plan, patience)
        except ClaimLost:
            continue
        finally:
            moved += patience.meter.moved
        if (found := plan.find()) is None:
            raise InputError(Problem(source.where, "was removed while it was fetched", "fetch it again"))
        return Fetched(found, moved=moved)


def _fill_or_wait(plan: Plan, patience: Patience) -> None:
    """Fetch what was chosen, or wait until another process has."""

    def show_waiting() -> None:
        raise_if_stopped("while another process fetches")
        there = store.bytes_in(plan.work)
        patience.watch(Transfer("waiting for another process that fetches it", there, plan.size))

    limits = patience.limits
    waiting = claimed(
        plan.work,
        is_done=lambda: plan.find() is not None,
        waiting=show_waiting,
        beat_seconds=limits.beat_seconds,
        stale_seconds=limits.stale_seconds,
    )
    with _disk_errors(plan.source, plan.root):
        try:
            with waiting as claim:
                if claim is not None:
                    Filling(plan, patience, claim).run()
        except SourceRefused as refused:
            if refused.reason not in _KEEPS_WORK:
                _clear(plan)
            raise
        _clear(plan)


def _clear(plan: Plan) -> None:
    """Remove the work folder, which nobody continues; another process may do the same."""
    if plan.work.exists():
        with suppress(InputError):
            store.remove(plan.root, plan.work)


@contextmanager
def _disk_errors(source: Source, root: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into a refusal."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise too_small(source, root, need=None, free=shutil.disk_usage(root).free) from None
        if error.errno in _NOT_WRITABLE:
            rule = f"cannot be written ({error.strerror})"
            fix = "give another folder with {field:sources_dir}, or fetch it beforehand: {command:sources fetch}"
            raise InputError(Problem(str(root), rule, fix, field="sources_dir")) from None
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            rule = f"something that was not fetched has its place ({error.filename2 or error.filename})"
            raise InputError(Problem(source.where, rule, "move that away", field=source.kind.field)) from None
        raise
