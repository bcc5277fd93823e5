"""From `dataset.path` to the files that it means: one file, `file.json#train`, a folder, a split of it, or a glob.

What lies there under exactly that name wins: a file called `a#b.json` or `rows[1].json` is that file.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.data.faults import shown
from llm_tuning.data.files.folder import Listing, choose
from llm_tuning.data.files.saved import read_saved
from llm_tuning.data.files.stored import file_errors
from llm_tuning.errors import InputError, Problem

_MAGIC = re.compile(r"[*?\[]")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
MAX_FILES = 100_000


@dataclass(frozen=True)
class Located:
    """The files of a data set, in the order in which their rows follow each other."""

    path: Path
    """As it was given."""
    files: tuple[Path, ...]
    member: str = ""
    """The name of the list that one file's JSON object holds, "" where the file itself is the list."""
    skipped: tuple[str, ...] = ()
    """What lies beside them and is not read: paths as they are shown."""


def locate(path: Path) -> Located:
    """Find the files of a data set; raises InputError, with what would be right."""
    with file_errors(path):
        for at, name in readings(path):
            if at.is_dir():
                return _in_folder(path, at, name)
            if at.exists():
                return Located(path, (at,), member=name)
        for pattern, name in readings(path):
            if _MAGIC.search(str(pattern)) and (found := _matches(pattern)):
                return _chosen(path, pattern, found, name)
    raise InputError(_missing(path))


def is_there(path: Path) -> bool:
    """Return whether a dataset's path means something that exists, be it usable or not."""
    try:
        return any(at.exists() or (_MAGIC.search(str(at)) and _matches(at)) for at, _ in readings(path))
    except OSError:
        return False


def split_off(path: str) -> tuple[str, str]:
    """Return `path` without the `#name` at its end, and the name: ("rows.json", "train"), ("rows.json", "")."""
    for at, name in readings(Path(path)):
        if at.exists() or _MAGIC.search(str(at)):
            return str(at), name
    return path, ""


def readings(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a path may mean, the whole of it first: (path, name behind the #)."""
    whole = os.path.expanduser(path) if str(path).startswith("~") and not path.exists() else str(path)
    yield Path(whole), ""
    for found in reversed(list(re.finditer("#", whole))):
        before, name = whole[: found.start()], whole[found.end() :]
        if before and name:
            yield Path(before), name


def _matches(pattern: Path) -> list[Path]:
    return [Path(found) for found in sorted(glob.glob(str(pattern), recursive=True))]


def _in_folder(path: Path, folder: Path, name: str) -> Located:
    if (saved := read_saved(folder, name)) is not None:
        return Located(path, saved.files, skipped=saved.skipped)
    found, hidden = [], []
    for at, folders, names in os.walk(folder):
        hidden += [str(Path(at, n)) for n in (*folders, *names) if n.startswith((".", "_"))]
        folders[:] = sorted(n for n in folders if not n.startswith((".", "_")))
        found += [Path(at, n) for n in names if not n.startswith((".", "_"))]
        if len(found) > MAX_FILES:
            raise InputError(
                Problem(str(path), f"holds more than {MAX_FILES:,} files", "put the rows into fewer files")
            )
    chosen = choose(Listing(str(folder), folder, sorted(found)), name)
    _check_links(chosen.files)
    return Located(path, chosen.files, skipped=(*chosen.skipped, *sorted(hidden)))


def _chosen(path: Path, pattern: Path, found: list[Path], name: str) -> Located:
    files = [at for at in found if not at.is_dir() and not at.name.startswith("_")]
    left = [str(at) for at in found if at not in set(files)]
    fixed = Path(*itertools.takewhile(lambda part: not _MAGIC.search(part), pattern.parts))
    chosen = choose(Listing(str(pattern), fixed, files, by_pattern=True), name)
    _check_links(chosen.files)
    return Located(path, chosen.files, skipped=(*chosen.skipped, *left))


def _check_links(files: Iterable[Path]) -> None:
    """Raise InputError for a link to what is not there: a hub's cache that was copied without its blobs, most often."""
    broken = [file for file in files if not file.exists()]
    if broken:
        more = f", and {len(broken) - 1:,} more like it" if len(broken) > 1 else ""
        rule = f"is a link to what is not there{more}"
        fix = "copy the files that the links lead to (cp -L), or remove the link"
        raise InputError(Problem(str(broken[0]), rule, fix))


def _missing(path: Path) -> Problem:
    text = str(path)
    if text.startswith(("http:", "https:", "hf:", "s3:", "gs:", "az:")):
        return Problem(
            text, "is no path of this machine", "a name that is fetched is given to a run or as {field:dataset.uri}"
        )
    if _MAGIC.search(text):
        return Problem(text, "matches no file", "check the pattern: * in a name, ** for folders below")
    if "," in text and all(map(os.path.exists, text.split(","))):
        return Problem(
            text, "is several paths", "put the files into a folder and give that, or a pattern such as *.jsonl"
        )
    before, mark, name = text.rpartition("#")
    if mark and not name and os.path.exists(before):
        return Problem(text, "names nothing behind the #", f"give {before} alone, or the name of a list or split in it")
    if _HUB_NAME.fullmatch(text) and not path.parent.exists():
        fix = f"if it is a hub's name: {{set:dataset.uri=hf://datasets/{shown(text)}}}"
        return Problem(text, "does not exist", fix)
    return Problem(text, "does not exist", "check the path of the dataset")
