"""`kubectl tuning explain NAME`: why it is where it is, and what to do."""

from __future__ import annotations

import argparse
import shutil
import textwrap

from llm_tuning.client import Job
from llm_tuning.client.explain import explain_job, explain_service
from llm_tuning.errors import EXIT_OK
from llm_tuning.kubectl.cluster import NAME_HELP, client_of, find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("name", help=NAME_HELP)


def run(args: argparse.Namespace) -> int:
    """Print the paragraph."""
    with client_of(args) as client:
        found = find(client, args.name)
    text = explain_job(found) if isinstance(found, Job) else explain_service(found)
    print(textwrap.fill(text, width=shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False))
    return EXIT_OK
