"""What a SIGTERM does while the agent or the plan only starts: it ends at once, and vLLM need not wait for it.

Imports nothing of weight: it works before the rest is imported.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType

RUN_DIR = Path("/serving")
"""An emptyDir that the pod's containers share: the plan for vLLM, the sign that the agent has drained, and how
often an adapter was loaded since vLLM started."""
DRAINED_FILE = "drained"
EXIT_STOPPED = 128 + signal.SIGTERM


def leave_on_signals(run_dir: Path = RUN_DIR) -> None:
    """Leave at once on a signal, until the agent's loop has its own handlers: no request was taken yet."""

    def leave(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            (run_dir / DRAINED_FILE).touch()
        os.write(2, b"ended before it had started\n")
        os._exit(EXIT_STOPPED)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
