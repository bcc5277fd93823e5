"""What this machine's server starts, so that it stops when the server is gone.

    python -m llm_tuning.openai_api.local.child PARENT ROLE              what a pod runs
    python .../child.py PARENT exec COMMAND...                           another program: vLLM has a Python of its own

A server that is killed must leave no trainer that nobody can stop, and no engine that keeps the memory: the next server
would wait for it. Standard library only, since another environment may run it.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1
EXEC = "exec"


def stop_with(parent: int) -> None:
    """Have this process sent SIGTERM when its parent ends, at once where it has ended already; it outlives an exec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    stop_with(int(sys.argv.pop(1)))
    if sys.argv[1] == EXEC:
        os.execvp(sys.argv[2], sys.argv[2:])
    runpy.run_module("llm_tuning.pod", run_name="__main__", alter_sys=True)
