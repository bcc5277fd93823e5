"""One at a time where a sqlite store is made: two runs that create the tables at once would both fail."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from llm_tuning.tracking.stores import Store


@contextmanager
def store_lock(store: Store) -> Iterator[None]:
    """Make the plain folder of `store` and hold its lock; other stores look after themselves."""
    if store.folder is None or store.is_file_store:
        yield
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    with (store.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
