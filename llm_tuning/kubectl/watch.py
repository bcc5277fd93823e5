"""`kubectl tuning watch NAME`: a progress bar until a TuningJob has finished, or an InferenceService is ready."""

from __future__ import annotations

import argparse

from llm_tuning.errors import EXIT_OK
from llm_tuning.kubectl.cluster import NAME_HELP, client_of, find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("name", help=NAME_HELP)
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long, with exit code 75")


def run(args: argparse.Namespace) -> int:
    """Watch it; raises TuningFailed where a TuningJob ends without an adapter."""
    with client_of(args) as client:
        print(find(client, args.name).wait(timeout_seconds=args.timeout))
    return EXIT_OK
