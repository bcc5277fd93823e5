"""`python -m llm_tuning.openai_api.local.child PARENT ROLE`: what a pod runs, that stops when its server is gone.

A server that is killed must leave no trainer that nobody can stop: the next server would wait for it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def stop_with(parent: int) -> None:
    """Have this process sent SIGTERM when its parent ends, at once where it has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    stop_with(int(sys.argv.pop(1)))
    runpy.run_module("llm_tuning.pod", run_name="__main__", alter_sys=True)
