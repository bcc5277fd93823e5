"""Publish a model each from several processes at once and time how long each takes to register it; a script.

Prints {"seconds": [...], "lost": [...]}: one time a process, and what the index lacks when all are done, without any
further command.

usage: python registry_writers.py MODELS_DIR WRITERS
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from llm_tuning.models.registry import Registry
from tests.support.models import publish_model


def main(models: Path, writers: int) -> dict[str, Any]:
    """Fork the writers, let them start together, and collect their times."""
    gate_read, gate_write = os.pipe()
    times_read, times_write = os.pipe()
    names = [f"writer-{time.time_ns()}-{number}" for number in range(writers)]
    children = []
    for name in names:
        child = os.fork()
        if child == 0:
            os.close(gate_write)
            _write(models, name, gate_read, times_write)
        children.append(child)
    for end in (gate_read, gate_write, times_write):
        os.close(end)
    with os.fdopen(times_read, "rb") as stream:
        seconds = [value for (value,) in struct.iter_unpack("d", stream.read())]
    for child in children:
        os.waitpid(child, 0)
    indexed = {entry["model_id"] for entry in json.loads((models / "registry.json").read_bytes())["models"]}
    return {"seconds": seconds, "lost": sorted(set(names) - indexed)}


def _write(models: Path, name: str, gate: int, times: int) -> None:
    try:
        publish_model(models, name)
        os.read(gate, 1)
        began = time.perf_counter()
        Registry(models).heal()
        os.write(times, struct.pack("d", time.perf_counter() - began))
    finally:
        os._exit(0)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
