"""The process that runs checks, one after the other, as `tests.gpu.check` names them on its standard input.

What it finds goes to the standard output it was started with, a JSON object a line; whatever libraries print goes to
the log. After a check that raised it ends itself: a CUDA error leaves a process unusable, and the next one is fresh.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tests.gpu.findings import Place

NOT_CARRIED = ("mlflow", "matplotlib")
"""What a machine with nothing but a GPU need not have. Blocked everywhere, so that the rehearsal shows it."""


def main(device: str, scratch: Path) -> None:
    """Run the checks whose names come on standard input until there are no more."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in NOT_CARRIED:
        sys.modules[name] = None  # type: ignore[assignment]
    send(channel, ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if not run_check(channel, device, scratch, **asked):
            return
        gc.collect()
        if device != "cpu":
            import torch

            torch.cuda.empty_cache()


def run_check(channel: TextIO, device: str, scratch: Path, *, where: str, seconds: float) -> bool:
    """Run the function `where` (module:function) and send what it finds; returns whether it came to its end."""
    print(f"== {where}", file=sys.stderr, flush=True)
    ends = time.monotonic() + seconds
    module, _, name = where.partition(":")
    try:
        for finding in getattr(importlib.import_module(module), name)(Place(device, scratch, ends)):
            send(channel, finding=asdict(finding))
    except Exception as error:  # whatever it is, the checks after this one are run
        traceback.print_exc()
        send(channel, raised=f"{type(error).__name__}: {error}"[:400])
        return False
    send(channel, ended=True)
    return True


def send(channel: TextIO, **message: Any) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
