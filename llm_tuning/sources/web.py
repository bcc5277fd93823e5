"""One file by https, pinned by its sha256, else by size and the server's tag of its content (ETag, Last-Modified)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from llm_tuning.core.text import one_line
from llm_tuning.sources.http import HttpBody, Refused, get
from llm_tuning.sources.listing import Listing, RemoteFile
from llm_tuning.sources.origin import STALL_SECONDS
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.uri import Source

_NO_HEAD = (403, 405, 501)
_PINNED = "give its hash behind the URI: #sha256=HEX"


@dataclass
class Web:
    """Any server."""

    stall_seconds: float = STALL_SECONDS

    def resolve(self, source: Source) -> str:
        """Return its sha256 where it is given, without asking anybody."""
        return source.sha256 or self._look(source)[0]

    def listing(self, source: Source, commit: str) -> Listing:
        now, file = self._look(source)
        if commit not in (source.sha256, now):
            rule = f"has changed since it was {commit[:12]}"
            raise SourceRefused(Terminal.REVISION, source, rule, "start a new run for what is there now")
        return Listing(commit, (file,))

    def open(self, source: Source, commit: str, file: RemoteFile, start: int) -> HttpBody:
        body = self._send(source, "GET", start)
        if file.version and _version(body) not in ("", file.version):
            body.close()
            raise SourceRefused(Terminal.REVISION, source, "changes while it is fetched", _PINNED)
        return body

    def _look(self, source: Source) -> tuple[str, RemoteFile]:
        """Ask for the headers alone; returns the commit and the file."""
        try:
            body = self._send(source, "HEAD", 0, stays=_NO_HEAD)
        except Refused:
            body = self._send(source, "GET", 0)
        body.close()
        if body.headers.get("Content-Type", "").partition(";")[0].strip().lower() in (
            "text/html",
            "application/xhtml+xml",
        ):
            fix = "give the address that the file itself is downloaded from"
            raise SourceRefused(Terminal.FORMAT, source, "is a page (HTML), not a file of rows", fix)
        size, version = body.headers.get("Content-Length", ""), _version(body)
        if not size.isdecimal():
            rule, fix = (
                "has no size (Content-Length), so that nobody can tell whether it fits and is whole",
                "use s3://",
            )
            raise SourceRefused(Terminal.FORMAT, source, rule, fix)
        if not version and not source.sha256:
            rule = "cannot be pinned: its server says neither ETag nor Last-Modified"
            raise SourceRefused(Terminal.FORMAT, source, rule, _PINNED)
        commit = source.sha256 or hashlib.sha256(f"{version}\n{size}".encode()).hexdigest()[:40]
        return commit, RemoteFile(_file_name(source), int(size), sha256=source.sha256, version=version)

    def _send(self, source: Source, method: str, start: int, *, stays: tuple[int, ...] = ()) -> HttpBody:
        url = f"https://{source.location}"
        try:
            return get(source, url, start=start, method=method, stall_seconds=self.stall_seconds)
        except Refused as refused:
            if refused.code in stays:
                raise
            raise _meaning(source, refused) from None


def _meaning(source: Source, refused: Refused) -> SourceRefused:
    if refused.code in (401, 403):
        fix = "give a file that needs no sign-in, or put it into a bucket and give s3://bucket/key"
        return SourceRefused(Terminal.ACCESS, source, f"asks for a sign-in (HTTP {refused.code})", fix)
    if refused.code == 416:
        raise SourceBusy(Passing.UNREACHABLE, source, "is shorter than it was")
    return SourceRefused(Terminal.NOT_FOUND, source, f"is not there (HTTP {refused.code})", "check the address")


def _version(body: HttpBody) -> str:
    """Return the server's tag of this content, "" where it has none. A weak tag is as good as the date here."""
    return one_line(body.headers.get("ETag") or body.headers.get("Last-Modified") or "")


def _file_name(source: Source) -> str:
    from urllib.parse import unquote

    name = unquote(source.name).replace("/", "-").replace("\x00", "-").lstrip(".-_")
    return name[-100:] or "rows"
