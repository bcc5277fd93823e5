"""Which files of a folder or a glob hold the rows: decided by their names alone, or refused where names do not decide.

    read        .json .jsonl .ndjson .parquet .csv .tsv .arrow .feather, each also with .gz or .zst, names without
                an ending and part-...; sorted by path, as text
    refused     what may hold rows and cannot be read here: archives, workbooks, pickles
    left out    everything else, README.md and dataset_info.json among it; the report lists it

A hub's names of splits are known (data/train-00000-of-00002.parquet, test.jsonl, validation/rows.csv). Rows of several
splits, of several folders, or in several formats are never put together by a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from llm_tuning.data.faults import shown
from llm_tuning.errors import InputError, Problem

DATA_ENDINGS = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv", ".arrow", ".feather")
COMPRESSED_ENDINGS = (".gz", ".zst", ".zstd")
_ARCHIVES = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".lz4", ".7z", ".rar")
_WORKBOOKS = (".xlsx", ".xls", ".ods")
_OTHER_TABLES = (".h5", ".hdf5", ".sqlite", ".db", ".orc", ".avro", ".tfrecord", ".msgpack")
_OF_PYTHON = (".pkl", ".pickle", ".npy", ".npz")
_UNREADABLE = (*_ARCHIVES, *_WORKBOOKS, *_OTHER_TABLES, *_OF_PYTHON)
_NO_ROWS = ("source.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?(?:\.\w+)+")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Listing:
    """The files found below a folder."""

    name: str
    """As the user gave it."""
    folder: Path
    files: Sequence[Path]
    by_pattern: bool = False
    """Whether a glob asked for these files, whatever their endings and folders."""

    def inside(self, file: Path) -> PurePath:
        """Return the part of a file's path that says what it is."""
        return file.relative_to(self.folder)


@dataclass(frozen=True)
class Chosen:
    """The files to read, in order, and what is left out."""

    files: tuple[Path, ...]
    skipped: tuple[str, ...]


def choose(listing: Listing, split: str) -> Chosen:
    """Return the files of `split` ("": the only one there is); raises InputError where the names do not decide."""
    data = [file for file in listing.files if _is_data(file, explicit=listing.by_pattern)]
    unreadable = [file for file in listing.files if _ending(file) in _UNREADABLE]
    if unreadable:
        rule = f"holds {_named(unreadable, listing)}, which may hold rows and cannot be read"
        raise InputError(
            Problem(listing.name, rule, "unpack or save them as JSON Lines, or move them out of the folder")
        )
    if not data:
        rule = f"holds no file of rows ({', '.join(DATA_ENDINGS)})"
        rest = f"; it has {_named(listing.files, listing)}" if listing.files else ""
        raise InputError(Problem(listing.name, f"{rule}{rest}", "give the file itself, or a pattern such as folder/*"))
    chosen = _of_split(data, listing, split)
    if not listing.by_pattern:
        _check_one_folder(chosen, listing)
    _check_shards(chosen, listing)
    left = set(chosen)
    return Chosen(tuple(chosen), tuple(str(file) for file in listing.files if file not in left))


def _ending(file: PurePath) -> str:
    """Return the last ending of a name that is not that of a compression."""
    endings = [ending.lower() for ending in file.suffixes]
    if endings and endings[-1] in COMPRESSED_ENDINGS:
        endings.pop()
    return endings[-1] if endings else ""


def _is_data(file: Path, *, explicit: bool) -> bool:
    """Return whether rows are looked for in a file; an explicit pattern asks for all but those known to have none."""
    if file.name in _NO_ROWS or file.name.startswith("cache-") or file.stem.upper() in ("README", "LICENSE", "NOTICE"):
        return False
    ending = _ending(file)
    if explicit:
        return ending not in _UNREADABLE and ending != ".md"
    return ending in ("", *DATA_ENDINGS) or file.name.startswith("part-")


def split_of(inside: PurePath) -> str:
    """Return the split that a file's path names, "" for none: `train` of data/train-00000-of-00002.parquet."""
    if shard := _SHARD.fullmatch(inside.name):
        name = shard["split"]
        return "" if name in ("data", "part") else _SPLIT_OF_WORD.get(name.lower(), name)
    for part in (inside.name.partition(".")[0], *reversed(inside.parts[:-1])):
        words = re.split(r"[^a-z0-9]+", part.lower())
        if found := list(dict.fromkeys(_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD)):
            return "-".join(found)
    return ""


def _of_split(files: list[Path], listing: Listing, split: str) -> list[Path]:
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(split_of(listing.inside(file)) if len(files) > 1 or split else "", []).append(file)
    wanted = _SPLIT_OF_WORD.get(split.lower(), split)
    if split and wanted in by_split:
        return by_split[wanted]
    splits = [name for name in by_split if name]
    exact = " or ".join(f"{listing.name}#{shown(name)}" for name in splits)
    if split:
        fix = f"name one that it has: {exact}" if splits else "its files name no splits: leave the # away"
        raise InputError(Problem(listing.name, f"has no split `{shown(split)}`", fix))
    if len(splits) > 1:
        raise InputError(
            Problem(listing.name, f"holds the splits {' and '.join(map(shown, splits))}", f"name one: {exact}")
        )
    if splits and "" in by_split:
        rule = f"holds the split {shown(splits[0])}, and {_named(by_split[''], listing)} of no split"
        raise InputError(Problem(listing.name, rule, f"name the split: {exact}, or give a pattern"))
    return files


def _check_one_folder(files: list[Path], listing: Listing) -> None:
    """Refuse rows in several folders: subsets of a hub's data set, or partitions whose column is their name."""
    folders = sorted({_without_split(listing.inside(file).parent) for file in files}, key=str)
    if partition := next((part for folder in folders for part in folder.parts if "=" in part), None):
        rule = f"is partitioned: `{shown(partition.partition('=')[0])}` is in the names of its folders, not in the rows"
        raise InputError(Problem(listing.name, rule, "write it as files of whole rows"))
    if len(folders) > 1:
        some = " and ".join(shown(str(folder)) for folder in folders[:_MOST_NAMED])
        fix = f"give one of them, or all by a pattern: {listing.name}/**/*{_ending(files[0])}"
        raise InputError(Problem(listing.name, f"holds rows in several folders: {some}", fix))


def _without_split(folder: PurePath) -> PurePath:
    return PurePath(*(part for part in folder.parts if part.lower() not in _SPLIT_OF_WORD))


def _check_shards(files: list[Path], listing: Listing) -> None:
    """Refuse a set of shards (`...-00001-of-00004`) of which some are not there: half a download, most often."""
    sets: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if shard := _SHARD.fullmatch(file.name):
            sets.setdefault((shard["split"], int(shard["count"])), set()).add(int(shard["number"]))
    for (name, count), there in sets.items():
        if not listing.by_pattern and len(there) < count:
            missing = next(number for number in range(count) if number not in there)
            rule = f"has {len(there):,} of the {count:,} files of {shown(name)}: number {missing:05d} is missing"
            raise InputError(Problem(listing.name, rule, "download or copy it again, or give those there by a pattern"))


def _named(files: Iterable[Path], listing: Listing) -> str:
    names = [shown(str(listing.inside(file))) for file in files]
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
