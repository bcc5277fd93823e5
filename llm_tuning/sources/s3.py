"""Objects of any S3: one, or all below a prefix, pinned by a hash over their names, sizes and ETags.

The client is minio's: small, and as good with any other server's S3. Settings have the names that AWS gave them:
AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a pod's identity, or ~/.aws/credentials;
without any of them buckets that are open to all). An endpoint of one's own is asked in path style.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llm_tuning.core.text import one_line
from llm_tuning.errors import InputError, Problem
from llm_tuning.sources.http import wait_seconds
from llm_tuning.sources.listing import Listing, RemoteFile
from llm_tuning.sources.origin import STALL_SECONDS
from llm_tuning.sources.reasons import Passing, SourceBusy, SourceRefused, Terminal
from llm_tuning.sources.uri import Source

AWS = "https://s3.amazonaws.com"
_MOST_FILES = 100_000
_KEYS_FIX = "give keys that may list and read it: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, on a cluster in the Secret"
_IDENTITY = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_SLOW = ("SlowDown", "SlowDownRead", "Throttling", "RequestLimitExceeded", "TooManyRequests")


@dataclass
class S3Body:
    """An object on its way."""

    origin: S3
    source: Source
    response: Any
    start: int = 0

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self.response.read(len(buffer))
        except Exception as error:
            raise self.origin.meaning(self.source, error) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        with suppress(Exception):
            self.response.close()
            self.response.release_conn()


@dataclass
class S3:
    """One account of one endpoint."""

    client: Any

    @classmethod
    def from_environment(cls, source: Source, environ: Mapping[str, str] | None = None) -> S3:
        """Set up the client; raises InputError where it is not installed or its settings are wrong."""
        environ = os.environ if environ is None else environ
        try:
            from minio import Minio
        except ImportError:
            fix = "install it: pip install 'llm-tuning[s3]'"
            raise InputError(Problem(source.where, "needs the package minio, which is not here", fix)) from None
        endpoint = urlsplit(environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or AWS)
        if endpoint.scheme not in ("http", "https") or endpoint.path.strip("/") or "@" in endpoint.netloc:
            rule = "must be http(s)://host[:port]"
            raise InputError(Problem("AWS_ENDPOINT_URL", rule, "give the address of the store alone"))
        client = Minio(
            endpoint=endpoint.netloc,
            secure=endpoint.scheme == "https",
            region=environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            credentials=_credentials(environ),
            http_client=_pool(endpoint.scheme, endpoint.hostname or "", environ),
        )
        return cls(client)

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
        unchanged = {"If-Match": f'"{file.version}"'}
        try:
            response = self.client.get_object(bucket, file.key, offset=start, request_headers=unchanged)
        except Exception as error:
            raise self.meaning(source, error) from None
        return S3Body(self, source, response, start if response.status == 206 else 0)

    def meaning(self, source: Source, error: Exception) -> SourceRefused | SourceBusy:
        """Say what the client's error means, by its type and the server's code; another one is raised as it is."""
        from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
        from urllib3.exceptions import HTTPError, ReadTimeoutError

        if isinstance(error, SourceRefused | SourceBusy):
            return error
        if isinstance(error, S3Error):
            return _refused(source, str(error.code), error.response.status, error.response.headers)
        if isinstance(error, ServerError):
            return _refused(source, "", error.status_code, {})
        if isinstance(error, InvalidResponseError):
            return _refused(source, "", int(error._code), {})
        if isinstance(error, ReadTimeoutError):
            return SourceBusy(Passing.STALLED, source, f"no byte came for {STALL_SECONDS:.0f} s")
        if isinstance(error, HTTPError | OSError | MinioException):
            return SourceBusy(Passing.UNREACHABLE, source, f"the store cannot be reached ({type(error).__name__})")
        raise error

    def _list(self, source: Source) -> Listing:
        """List the object that has this key, else the objects below it."""
        bucket, _, key = source.location.partition("/")
        found: list[RemoteFile] = []
        try:
            for item in self.client.list_objects(bucket, prefix=key, recursive=True):
                name = str(item.object_name)
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
        if odd := next((file.name for file in found if {"", ".", ".."} & set(file.name.split("/"))), None):
            rule = f"has an object that no file can be named by: {one_line(odd)!r}"
            raise SourceRefused(Terminal.FORMAT, source, rule, "rename it")
        return _as_listing(sorted(found, key=lambda file: file.name))


def _refused(source: Source, code: str, status: int, headers: Mapping[str, str]) -> SourceRefused | SourceBusy:
    wait = wait_seconds(headers)
    if code in _SLOW or status in (429, 503):
        rule = f"the store has had too many requests ({code or status})"
        return SourceBusy(Passing.RATE, source, rule, wait_seconds=wait)
    if status >= 500:
        return SourceBusy(Passing.UNREACHABLE, source, f"the store answered HTTP {status}", wait_seconds=wait)
    if code == "NoSuchBucket":
        return SourceRefused(
            Terminal.NOT_FOUND, source, "names a bucket that does not exist", "check the bucket's name"
        )
    if code == "PreconditionFailed" or status == 412:
        return SourceRefused(Terminal.REVISION, source, "changes while it is fetched", "start a new run when it rests")
    if status == 404:
        return SourceRefused(Terminal.NOT_FOUND, source, "is not there any more", "check the key")
    return SourceRefused(Terminal.ACCESS, source, f"is not open to these keys ({code or status})", _KEYS_FIX)


def _credentials(environ: Mapping[str, str]) -> Any:
    """Return where keys come from; None: buckets that are open to all."""
    from minio.credentials import AWSConfigProvider, IamAwsProvider, StaticProvider

    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if key and secret:
        return StaticProvider(key, secret, environ.get("AWS_SESSION_TOKEN") or None)
    if any(environ.get(name) for name in _IDENTITY):
        return IamAwsProvider()
    file = environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    return AWSConfigProvider(filename=file, profile=environ.get("AWS_PROFILE")) if Path(file).is_file() else None


def _pool(scheme: str, host: str, environ: Mapping[str, str]) -> Any:
    """Build the connections, with the environment's proxy and CA and no tries of their own: those are `patience`'s."""
    import urllib3

    settings: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=STALL_SECONDS, read=STALL_SECONDS),
        "retries": False,
        "maxsize": 10,
    }
    if ca := environ.get("AWS_CA_BUNDLE") or environ.get("SSL_CERT_FILE"):
        settings["ca_certs"] = ca
    proxy = None if urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(scheme)
    return urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)


def _file(item: Any, name: str) -> RemoteFile:
    """Return it without a hash: an ETag is the MD5 of some uploads only, and serves as a tag for all."""
    return RemoteFile(name, int(item.size), key=str(item.object_name), version=str(item.etag).strip('"'))


def _as_listing(files: list[RemoteFile]) -> Listing:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name}\0{file.size}\0{file.version}\n".encode())
    return Listing(total.hexdigest()[:40], tuple(files))
