"""`python -m llm_tuning.agent plan | serve`: the containers of an InferenceService's pod beside vLLM.

This process is PID 1 of its container, where a SIGTERM without a handler does nothing at all; and importing takes a
second or more. So it is handled before anything else is imported.
"""

from __future__ import annotations

import sys

from llm_tuning.agent.starting import leave_on_signals


def main(arguments: list[str]) -> int:
    """Run the subcommand and return its exit code."""
    leave_on_signals()
    from llm_tuning.agent.commands import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
