"""Objects of any S3: one, or all below a prefix, pinned by a hash over their names, sizes and ETags.

Keys, region, endpoint and CA bundle are botocore's own settings: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_CA_BUNDLE.
An endpoint of one's own is asked in path style, which every server understands.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llm_tuning.errors import InputError, Problem
from llm_tuning.sources.listing import Listing, RemoteFile
from llm_tuning.sources.origin import STALL_SECONDS
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.uri import Source

_MOST_FILES = 100_000
_KEYS_FIX = (
    "give keys that may list and read it: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on a cluster in the Secret"
)
_SLOW = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "429")
_NOT_FOUND = ("NoSuchKey", "404", "NotFound")
_CHANGED = ("PreconditionFailed", "412")


@dataclass
class S3Body:
    """An object on its way."""

    origin: S3
    source: Source
    stream: Any
    start: int = 0

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self.stream.read(len(buffer))
        except Exception as error:
            raise self.origin.meaning(self.source, error) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        with suppress(Exception):
            self.stream.close()


@dataclass
class S3:
    """One account of one endpoint."""

    client: Any

    @classmethod
    def from_environment(cls, source: Source, environ: Mapping[str, str] | None = None) -> S3:
        """Set up botocore's client; raises InputError where it is not installed or its settings are wrong."""
        environ = os.environ if environ is None else environ
        try:
            from botocore.config import Config
            from botocore.session import Session
        except ImportError:
            fix = "pip install 'llm-tuning[s3]'"
            raise InputError(Problem(source.where, "needs botocore, which is not installed", fix)) from None
        own = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        config = Config(
            connect_timeout=STALL_SECONDS,
            read_timeout=STALL_SECONDS,
            retries={"total_max_attempts": 1},  # fetch.py tries again, and says so
            s3={"addressing_style": "path" if own else "auto"},
            max_pool_connections=10,
        )
        session = Session()
        if not session.get_config_variable("region"):
            session.set_config_variable("region", "us-east-1")
        try:
            return cls(session.create_client("s3", endpoint_url=own, config=config))
        except Exception as error:  # botocore's errors have no common parent but this
            raise InputError(Problem(source.where, f"cannot be asked: {error}", "check the AWS_ variables")) from None

    def resolve(self, source: Source) -> str:
        return self._list(source).commit

    def listing(self, source: Source, commit: str) -> Listing:
        listing = self._list(source)
        if listing.commit != commit:
            rule = f"has changed since it was {commit[:12]}"
            raise SourceRefused(Terminal.REVISION, source, rule, "start a new run for what is there now")
        return listing

    def open(self, source: Source, commit: str, file: RemoteFile, start: int) -> S3Body:
        bucket = source.location.partition("/")[0]
        asked: dict[str, Any] = {"Range": f"bytes={start}-"} if start else {}
        try:
            answer = self.client.get_object(Bucket=bucket, Key=file.key, IfMatch=file.version, **asked)
        except Exception as error:
            raise self.meaning(source, error) from None
        return S3Body(self, source, answer["Body"], start if answer["ResponseMetadata"]["HTTPStatusCode"] == 206 else 0)

    def meaning(self, source: Source, error: Exception) -> SourceRefused | SourceBusy:
        """Say what botocore's error means, by its type and the server's code."""
        from botocore import exceptions
        from urllib3.exceptions import HTTPError

        if isinstance(error, SourceRefused | SourceBusy):
            return error
        if isinstance(error, exceptions.ClientError):
            return _refused(source, str(error.response.get("Error", {}).get("Code", "")), error.response)
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return SourceRefused(Terminal.ACCESS, source, "needs keys, and none are given", _KEYS_FIX)
        if isinstance(error, exceptions.ReadTimeoutError):
            return SourceBusy(Passing.STALLED, source, f"no byte came for {STALL_SECONDS:.0f} s")
        if isinstance(error, exceptions.BotoCoreError | HTTPError | OSError):
            return SourceBusy(Passing.UNREACHABLE, source, f"the store cannot be reached ({type(error).__name__})")
        raise error

    def _list(self, source: Source) -> Listing:
        """List the object that has this key, else the objects below it."""
        bucket, _, key = source.location.partition("/")
        found: list[RemoteFile] = []
        try:
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                for item in page.get("Contents", ()):
                    name = item["Key"]
                    if name == key:
                        return _as_listing([_file(item, name.rpartition("/")[2])])
                    if name.startswith(f"{key}/") and not name.endswith("/"):
                        found.append(_file(item, name[len(key) + 1 :]))
                if len(found) > _MOST_FILES:
                    rule = f"has more than {_MOST_FILES:,} objects"
                    raise SourceRefused(Terminal.FORMAT, source, rule, "give a longer prefix")
        except Exception as error:
            raise self.meaning(source, error) from None
        if not found:
            rule = f"does not exist: bucket {bucket} has no object of this name and none below it"
            raise SourceRefused(Terminal.NOT_FOUND, source, rule, "check the key")
        if odd := next((file.name for file in found if ".." in file.name.split("/") or "//" in f"/{file.name}"), None):
            raise SourceRefused(
                Terminal.FORMAT, source, f"has an object that no file can be named by: {odd!r}", "rename it"
            )
        return _as_listing(sorted(found, key=lambda file: file.name))


def _refused(source: Source, code: str, response: Mapping[str, Any]) -> SourceRefused | SourceBusy:
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    asked = str(metadata.get("HTTPHeaders", {}).get("retry-after", ""))
    wait = float(asked) if asked.isdecimal() else None
    if code in _SLOW or status in (429, 503):
        return SourceBusy(Passing.RATE, source, f"the store has had too many requests ({code})", wait_seconds=wait)
    if status >= 500:
        return SourceBusy(Passing.UNREACHABLE, source, f"the store answered HTTP {status} ({code})", wait_seconds=wait)
    if code == "NoSuchBucket":
        return SourceRefused(
            Terminal.NOT_FOUND, source, "names a bucket that does not exist", "check the bucket's name"
        )
    if code in _CHANGED:
        return SourceRefused(Terminal.REVISION, source, "changes while it is fetched", "start a new run when it rests")
    if code in _NOT_FOUND or status == 404:
        return SourceRefused(Terminal.NOT_FOUND, source, "is not there any more", "check the key")
    return SourceRefused(Terminal.ACCESS, source, f"is not open to these keys ({code or status})", _KEYS_FIX)


def _file(item: Mapping[str, Any], name: str) -> RemoteFile:
    """No hash: an ETag is the MD5 of some uploads only. botocore compares the checksums that S3 sends."""
    return RemoteFile(name, int(item["Size"]), key=item["Key"], version=str(item["ETag"]))


def _as_listing(files: list[RemoteFile]) -> Listing:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.size}\0{file.version}\n".encode())
    return Listing(total.hexdigest()[:40], tuple(files))
