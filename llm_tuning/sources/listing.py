"""What an origin says of a source before a byte of it is fetched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """One file as its origin lists it. Of the hashes, those that the origin has are compared while it is fetched."""

    name: str
    """Path in the source, with `/`."""
    size: int
    sha256: str = ""
    git_sha1: str = ""
    """Of git's blob: what the hub has for files that are not in LFS."""
    key: str = ""
    """What the origin itself calls it, where that is not `name`."""
    version: str = ""
    """The origin's tag of this content (ETag): a file that has changed since is noticed."""


@dataclass(frozen=True)
class Listing:
    """All files of a source at one commit."""

    commit: str
    """40 or 64 hex digits: the hub's commit; for s3 and https a hash over names, sizes and tags of the contents."""
    files: tuple[RemoteFile, ...]

    def __getitem__(self, name: str) -> RemoteFile:
        return next(file for file in self.files if file.name == name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)
