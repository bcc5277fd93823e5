"""Images."""

from pathlib import Path


def main(argv):
    raise SystemExit(1)


def load_into(socket: Path, ref: str) -> bool:
    raise NotImplementedError
