"""The hub, and any server that speaks its API: two requests for a commit and its files, then plain GETs.

    GET /api/models/owner/name/revision/REVISION        {"sha": commit}
    GET /api/models/owner/name/tree/COMMIT?recursive    [{path, size, oid, lfs: {oid, size}}], in pages
    GET /owner/name/resolve/COMMIT/FILE                 the bytes; a redirect to a store

Not huggingface_hub's client: HF_HUB_OFFLINE is read once for a whole process, in which training has to stay offline;
its import takes a second; it compares no hashes, and on a full disk it only warns. Tests compare this with it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from llm_tuning.core.text import one_line
from llm_tuning.sources.http import HttpBody, Refused, get
from llm_tuning.sources.listing import Listing, RemoteFile
from llm_tuning.sources.origin import STALL_SECONDS
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.uri import Kind, Source

ENDPOINT = "https://huggingface.co"
_ANSWER_BYTES = 2**26
_MOST_FILES = 100_000
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_TOKEN_FIX = "give a token that may read it in HF_TOKEN, on a cluster in the Secret"


@dataclass
class Hub:
    """One hub. `token` goes to it alone."""

    endpoint: str = ENDPOINT
    token: str | None = None
    stall_seconds: float = STALL_SECONDS

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Hub:
        """Take HF_ENDPOINT, and the token of HF_TOKEN or of `hf auth login`."""
        environ = os.environ if environ is None else environ
        return cls((environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"), _token(environ))

    def resolve(self, source: Source) -> str:
        revision = quote(source.revision or "main", safe="")
        answer, _ = self._api(source, f"{self._api_of(source.kind, source.location)}/revision/{revision}")
        commit = str(answer.get("sha", "")) if isinstance(answer, dict) else ""
        if not _COMMIT.fullmatch(commit):
            raise SourceBusy(
                Passing.UNREACHABLE, source, f"{self._host} named no commit: it does not speak the hub's API"
            )
        return commit

    def listing(self, source: Source, commit: str) -> Listing:
        url = f"{self._api_of(source.kind, source.location)}/tree/{commit}?recursive=true"
        files: list[RemoteFile] = []
        while url:
            answer, following = self._api(source, url)
            if not isinstance(answer, list):
                raise SourceBusy(Passing.UNREACHABLE, source, f"{self._host} sent no list of files")
            files += [_file(item) for item in answer if item.get("type") == "file"]
            if len(files) > _MOST_FILES:
                rule = f"has more than {_MOST_FILES:,} files"
                raise SourceRefused(Terminal.FORMAT, source, rule, "give one file or one split of it")
            url = urljoin(url, following) if following else ""
        for file in files:
            if file.name.startswith("/") or ".." in file.name.split("/"):
                raise SourceRefused(Terminal.FORMAT, source, f"names a file {one_line(file.name)!r}", "use another hub")
        return Listing(commit, tuple(sorted(files, key=lambda file: file.name)))

    def open(self, source: Source, commit: str, file: RemoteFile, start: int) -> HttpBody:
        of = "datasets/" if source.kind is Kind.DATASET else ""
        url = f"{self.endpoint}/{of}{source.location}/resolve/{commit}/{quote(file.name)}"
        return self._get(source, url, start=start)

    @property
    def _host(self) -> str:
        return urlsplit(self.endpoint).netloc

    def _api_of(self, kind: Kind, name: str) -> str:
        return f"{self.endpoint}/api/{'datasets' if kind is Kind.DATASET else 'models'}/{name}"

    def _api(self, source: Source, url: str) -> tuple[Any, str]:
        """Return the JSON of an answer, and where its next page is, "" where it is the last."""
        body = self._get(source, url)
        try:
            text = body.read(_ANSWER_BYTES)
        finally:
            body.close()
        following = re.search(r'<([^>]+)>;\s*rel="next"', body.headers.get("Link", ""))
        try:
            return json.loads(text), following[1] if following else ""
        except ValueError:
            raise SourceBusy(Passing.UNREACHABLE, source, f"{self._host} sent half an answer, or no JSON") from None

    def _get(self, source: Source, url: str, start: int = 0) -> HttpBody:
        try:
            return get(source, url, token=self.token, start=start, stall_seconds=self.stall_seconds)
        except Refused as refused:
            raise self._meaning(source, refused) from None

    def _meaning(self, source: Source, refused: Refused) -> SourceRefused:
        """Say what the hub means: by its own code (X-Error-Code), else by the status."""
        said = refused.headers.get("X-Error-Code", "")
        page = f"{self.endpoint}/{source.repository.removeprefix('hf://')}"
        if said == "GatedRepo":
            fix = f"ask for access at {page}, then {_TOKEN_FIX}"
            return SourceRefused(Terminal.ACCESS, source, "is gated: its owner grants access one by one", fix)
        if said == "RevisionNotFound":
            rule = f"has no revision {source.revision or 'main'}"
            return SourceRefused(Terminal.REVISION, source, rule, f"look for its branches and tags at {page}")
        if refused.code in (401, 403):
            if self.token:
                rule = f"is not open to the token that was given (HTTP {refused.code})"
                return SourceRefused(Terminal.ACCESS, source, rule, f"check the name, or {_TOKEN_FIX}")
            rule = f"does not exist, or is private (HTTP {refused.code})"
            return SourceRefused(Terminal.ACCESS, source, rule, f"check the name, or {_TOKEN_FIX}")
        if refused.code == 404 and said != "EntryNotFound":
            return self._not_found(source)
        rule = f"is refused by {self._host} (HTTP {refused.code})"
        return SourceRefused(Terminal.NOT_FOUND, source, rule, f"look at {page}")

    def _not_found(self, source: Source) -> SourceRefused:
        """Say whether a repository of the other kind has the name, which takes one request more."""
        other = Kind.MODEL if source.kind is Kind.DATASET else Kind.DATASET
        try:
            get(
                source, self._api_of(other, source.location), token=self.token, stall_seconds=self.stall_seconds
            ).close()
        except (Refused, SourceBusy):
            rule = f"is not on {self._host}"
            return SourceRefused(Terminal.NOT_FOUND, source, rule, "check owner and name")
        is_dataset = other is Kind.DATASET
        rule = "is a data set, not a model" if is_dataset else "is a model, not a data set"
        fix = f"give it as {{field:{other.field}}}: hf://{'datasets/' if is_dataset else ''}{source.location}"
        return SourceRefused(Terminal.NOT_FOUND, source, rule, fix)


def _file(item: Mapping[str, Any]) -> RemoteFile:
    lfs = item.get("lfs") or {}
    sha256 = str(lfs.get("oid", "")).removeprefix("sha256:")
    git = "" if sha256 else str(item.get("oid", ""))
    return RemoteFile(str(item["path"]), int(lfs.get("size", item.get("size", 0))), sha256=sha256, git_sha1=git)


def _token(environ: Mapping[str, str]) -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := environ.get(name, "").strip():
            return token
    home = environ.get("HF_HOME") or os.path.join(
        environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    try:
        return Path(environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")).read_text().strip() or None
    except OSError:
        return None
