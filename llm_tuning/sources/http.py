"""HTTP as sources need it: one GET at a time from a position on, on the standard library.

http.client reads from the socket straight into our buffer, at several times the speed of an HTTP parser in Python, and
its time-out is exactly the rule for a stall: so long without a byte. Proxies (HTTPS_PROXY, NO_PROXY) and the CA bundle
(SSL_CERT_FILE) come from the environment. A token goes to the host that it is for and to no other.
"""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from llm_tuning._version import __version__
from llm_tuning.sources.origin import STALL_SECONDS
from llm_tuning.sources.reasons import Passing, SourceBusy
from llm_tuning.sources.uri import Source

AUTHORIZATION = "Authorization"
_RATE = (429,)
_PASSING = (408, 425, 500, 502, 503, 504)
_BUSY_CODES = (*_RATE, *_PASSING)


class Refused(Exception):  # noqa: N818 - what the server did
    """The server's answer is none of 2xx and will not be another the next time; the origin says what it means."""

    def __init__(self, code: int, headers: Message, url: str) -> None:
        self.code, self.headers, self.url = code, headers, url
        super().__init__(f"HTTP {code}")


@dataclass
class HttpBody:
    """An answer on its way."""

    source: Source
    response: http.client.HTTPResponse
    start: int = 0

    @property
    def headers(self) -> Message:
        return self.response.headers

    def readinto(self, buffer: memoryview) -> int:
        with busy_errors(self.source):
            return self.response.readinto(buffer)

    def read(self, most: int) -> bytes:
        """Read an answer of at most `most` bytes whole; what is beyond is cut."""
        with busy_errors(self.source):
            return self.response.read(most)

    def close(self) -> None:
        with suppress(OSError):
            self.response.close()


def get(
    source: Source,
    url: str,
    *,
    token: str | None = None,
    start: int = 0,
    method: str = "GET",
    stall_seconds: float = STALL_SECONDS,
) -> HttpBody:
    """Send one request; raises Refused for answers that stay, SourceBusy for what may pass."""
    request = urllib.request.Request(url, method=method, headers={"User-Agent": f"llm-tuning/{__version__}"})
    request.add_header("Accept-Encoding", "identity")
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token:
        request.add_unredirected_header(AUTHORIZATION, f"Bearer {token}")
    with busy_errors(source):
        try:
            response: Any = _opener().open(request, timeout=stall_seconds)
        except urllib.error.HTTPError as error:
            with error:
                raise _meaning(source, error) from None
    if start and response.status != 206:
        start = 0
    elif start and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-"):
        response.close()
        raise SourceBusy(Passing.UNREACHABLE, source, "the server sent another part of the file than it was asked for")
    return HttpBody(source, response, start)


def _meaning(source: Source, error: urllib.error.HTTPError) -> Exception:
    wait = wait_seconds(error.headers)
    host = urlsplit(error.url).hostname
    if error.code in _RATE or (error.code == 503 and wait is not None):
        asked = "" if wait is None else f" and asks to wait {wait:,.0f} s"
        return SourceBusy(
            Passing.RATE, source, f"{host} has had too many requests (HTTP {error.code}){asked}", wait_seconds=wait
        )
    if error.code in _PASSING:
        rule = f"{host} answered HTTP {error.code}"
        return SourceBusy(Passing.UNREACHABLE, source, rule, wait_seconds=wait)
    return Refused(error.code, error.headers, error.url)


def wait_seconds(headers: Message | Mapping[str, str]) -> float | None:
    """Return what the server asks to wait: Retry-After as seconds or as a date, or the hub's RateLimit (`r=0;t=55`)."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    if asked:
        with suppress(ValueError, TypeError):
            return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    parts = dict(part.strip().split("=", 1) for part in headers.get("RateLimit", "").split(";") if "=" in part)
    return float(parts["t"]) if parts.get("r") == "0" and parts.get("t", "").isdecimal() else None


class busy_errors:  # noqa: N801 - used as a statement
    """Turn what the network does into SourceBusy: no name, no route, refused, cut, silent."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, urllib.error.HTTPError) or error is None:
            return
        connecting = isinstance(error, urllib.error.URLError)
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = cause.verify_message
            rule = f"the server's certificate is not trusted ({why}); name your CA bundle in SSL_CERT_FILE"
            raise SourceBusy(Passing.UNREACHABLE, self._source, rule) from None
        if isinstance(cause, TimeoutError) and not connecting:
            raise SourceBusy(Passing.STALLED, self._source, f"no byte came for {STALL_SECONDS:.0f} s") from None
        if connecting or isinstance(error, OSError | http.client.HTTPException):
            said = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            raise SourceBusy(Passing.UNREACHABLE, self._source, f"the server cannot be reached ({said})") from None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to other hosts without the token, and never from https to http."""

    def redirect_request(  # noqa: PLR0917 - urllib's own
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        to, of = urlsplit(newurl), urlsplit(req.full_url)
        if of.scheme == "https" and to.scheme != "https":
            raise urllib.error.URLError(f"it redirects from https to {to.scheme}")
        follow = super().redirect_request(req, fp, code, msg, headers, newurl)
        if follow is not None and req.get_method() == "HEAD":
            follow.method = "HEAD"
        if follow is not None and (to.scheme, to.netloc) == (of.scheme, of.netloc):
            token = req.unredirected_hdrs.get(AUTHORIZATION)
            if token:
                follow.add_unredirected_header(AUTHORIZATION, token)
        return follow


@cache
def _opener() -> urllib.request.OpenerDirector:
    tls = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    return urllib.request.build_opener(_Redirects(), tls)
