"""`python -m llm_tuning.pod fetch | check | train | report`: run one, leave its result, and exit by it.

This process is PID 1 of its container, where an unhandled SIGTERM does nothing at all: so it is handled
before anything else is imported, and the run checks for it between its steps.
"""

from __future__ import annotations

import logging
import os
import sys

from llm_tuning.core.stopping import stop_on_signals


def main(arguments: list[str]) -> int:
    """Run the subcommand and return its exit code: 0, 64 (bad input), 75 (try again), 1 (unexpected)."""
    with stop_on_signals():
        from llm_tuning.pod.process import run_role

        return run_role(arguments[0] if len(arguments) == 1 else "")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not sys.exit: a thread that waits for what the network has lost must not hold the exit code back
