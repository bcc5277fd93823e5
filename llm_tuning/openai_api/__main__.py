"""`python -m llm_tuning.openai_api`: the server of a namespace, as charts/llm-tuning-api runs it.

This process is PID 1 of its container, where a SIGTERM without a handler does nothing at all; and importing takes a
second or more. So it is handled before anything else is imported, until uvicorn has handlers of its own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_STOPPED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(EXIT_STOPPED))
    args = _parser().parse_args(arguments)
    from llm_tuning.agent.contract import API_KEY_VARIABLE
    from llm_tuning.client import Connection
    from llm_tuning.errors import EXIT_INPUT, InputError
    from llm_tuning.openai_api.bases import Settings
    from llm_tuning.openai_api.cluster import ClusterBackend
    from llm_tuning.openai_api.keys import KeyRing
    from llm_tuning.openai_api.server import log_to_stderr, serve

    log_to_stderr()
    try:
        settings = Settings.load(args.settings)
        service_key = settings.service_key(os.environ.get(API_KEY_VARIABLE))
        backend = ClusterBackend(Connection.load(), args.root, settings.claim_name)
    except InputError as error:
        sys.stderr.write("".join(f"error: {problem}\n" for problem in error.problems))
        return EXIT_INPUT
    return serve(backend, settings, host=args.host, port=args.port, keys=KeyRing(args.keys), service_key=service_key)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llm_tuning.openai_api", description="The fine-tuning API.")
    add = parser.add_argument
    add("--settings", type=Path, required=True, metavar="FILE", help="YAML file of bases, limits and names")
    add("--keys", type=Path, required=True, metavar="FOLDER", help="has a folder for each mounted Secret of keys")
    add(
        "--root",
        type=Path,
        default=Path("/workspace"),
        metavar="FOLDER",
        help="where the claim is (default %(default)s)",
    )
    add("--host", default="", help="address to listen at (default: every one)")
    add("--port", type=int, default=8000, help="default %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
