"""`python -m devcluster image build NAME...` and `image list`."""

from __future__ import annotations

import argparse
import subprocess
import sys

from devcluster.images import storage
from devcluster.images.building import RECIPES, build


def main(arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m devcluster image", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="build what is not up to date, and print the images' names")
    choices = [*RECIPES, "all"]
    command.add_argument("names", nargs="+", choices=choices, metavar="NAME", help=", ".join(choices))
    commands.add_parser("list", help="the images there are, with their sizes")
    args = parser.parse_args(arguments)
    try:
        if args.command == "list":
            print(storage.buildah("images").strip())
            return 0
        for name in RECIPES if "all" in args.names else args.names:
            print(build(name))
    except (storage.ImageError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
