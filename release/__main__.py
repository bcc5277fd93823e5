"""`python -m release`: what a maintainer runs before and while a version is published.

check [--tag vX.Y.Z]   what needs no image: versions, packages, chart, licences, bills of materials, into dist/
images                 build the images; sizes and bills of materials
version [X.Y.Z]        tell what does not name the version; or write another one everywhere
helm ARGUMENTS         the helm of the development environment
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from release import images, version
from release.check import check
from release.helm import helm
from release.running import ROOT, ReleaseError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 1 if the release is not right as it is."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["helm"]:
            return subprocess.run([helm(), *arguments[1:]], check=False).returncode
        return _run(_parser().parse_args(arguments))
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m release", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("check", help="build and check what needs no image")
    command.add_argument("--tag", help="the git tag it is released as: must fit the version and the change log")
    _add_out(command)
    command = commands.add_parser("images", help="build the images")
    command.add_argument("--engine", choices=images.ENGINES, help="default: the first of them that works")
    command.add_argument("--prefix", default="localhost/llm-tuning", help="registry and folder of the names")
    command.add_argument("--base", metavar="IMAGE@sha256:...", help="the base image by its digest")
    command.add_argument("--source", help="URL of the repository, for the images' labels")
    _add_out(command)
    command = commands.add_parser("version", help="check or set the version")
    command.add_argument("new", nargs="?", help="three numbers")
    commands.add_parser("helm", help="run helm")
    return parser


def _add_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for what is made (default: dist)")


def _run(args: argparse.Namespace) -> int:
    match args.command:
        case "check":
            return check(ROOT, args.out, tag=args.tag)
        case "images":
            engine = images.find_engine(args.engine)
            options = {"prefix": args.prefix, "base": args.base, "source": args.source}
            print(images.build_images(ROOT, args.out, engine, **options))
        case "version" if args.new:
            for path in version.set_version(ROOT, args.new):
                print(f"{path.relative_to(ROOT)}: written")
        case "version":
            found = version.problems(ROOT)
            print("\n".join(found) or version.read_version(ROOT))
            return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
