"""`kubectl tuning logs NAME`: the log of the pods of the stage that a TuningJob is at, without knowing their names."""

from __future__ import annotations

import argparse

from llm_tuning.errors import EXIT_OK
from llm_tuning.kubectl.cluster import client_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this command."""
    parser.add_argument("name", metavar="NAME", help="the TuningJob")
    parser.add_argument("-f", "--follow", action="store_true", help="go on, from the check to the end of the training")
    parser.add_argument(
        "--rank",
        metavar="N",
        type=int,
        default=0,
        help="the pod that has this rank, of a training of several; default 0",
    )


def run(args: argparse.Namespace) -> int:
    """Print the lines as they come."""
    with client_of(args) as client:
        for line in client.logs(args.name.rpartition("/")[2], follow=args.follow, rank=args.rank):
            print(line, flush=True)
    return EXIT_OK
