"""What the places that sources come from have in common: a commit, a list of files, and bytes from a position on."""

from __future__ import annotations

from typing import Protocol

from llm_tuning.sources.listing import Listing, RemoteFile
from llm_tuning.sources.uri import Source

STALL_SECONDS = 60.0
"""A connection that brings no byte for so long is ended, and the file continued on another one."""


class Body(Protocol):
    """The bytes of one file that are on their way."""

    start: int
    """Position of the first one: what was asked for, or 0 where the server cannot start in the middle."""

    def readinto(self, buffer: memoryview) -> int:
        """Fill some of `buffer`; 0 at the end. Raises SourceBusy where the connection breaks or stalls."""
        ...

    def close(self) -> None: ...


class Origin(Protocol):
    """One kind of place. Each method makes one try, and raises SourceRefused or SourceBusy."""

    def resolve(self, source: Source) -> str:
        """Return the commit that `source` is at now."""
        ...

    def listing(self, source: Source, commit: str) -> Listing:
        """List the files at `commit`, with sizes and the hashes that are known."""
        ...

    def open(self, source: Source, commit: str, file: RemoteFile, start: int) -> Body:
        """Begin to send `file` from byte `start` on."""
        ...


def origin_of(source: Source) -> Origin:
    """Return the origin for the scheme of `source`, set up from the environment."""
    if source.scheme == "hf":
        from llm_tuning.sources.hub import Hub

        return Hub.from_environment()
    if source.scheme == "s3":
        from llm_tuning.sources.s3 import S3

        return S3.from_environment(source)
    from llm_tuning.sources.web import Web

    return Web()
