"""Checks that go wrong, for the test of what runs them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from tests.gpu.findings import Finding, Place, not_here, same


def passes(place: Place) -> Iterator[Finding]:
    print("a library prints this")
    yield same("process", os.getpid() > 0, True)
    yield same("device", place.device, "cpu")


def fails(place: Place) -> Iterator[Finding]:
    yield same("sum", 1 + 1, 3)
    yield same("goes on", 1, 1)


def raises(place: Place) -> Iterator[Finding]:
    yield same("before", 1, 1)
    raise ValueError("of this kind")


def hangs(place: Place) -> Iterator[Finding]:
    yield same("before", 1, 1)
    time.sleep(600)


def dies(place: Place) -> Iterator[Finding]:
    yield same("before", 1, 1)
    sys.stdout.flush()
    os._exit(7)


def elsewhere(place: Place) -> Iterator[Finding]:
    yield not_here("a GPU", "needs CUDA")


def needs_mlflow(place: Place) -> Iterator[Finding]:
    import mlflow  # noqa: F401

    yield same("imported", 1, 1)
