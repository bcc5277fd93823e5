"""What can go wrong between a client and its cluster; each failure keeps a type of its own.

TuningError
+-- InputError             fields are wrong: found by the check before a request, or by the API server (400, 422)
+-- ClusterError           the API server refused, or cannot be reached
|   +-- NotFound           there is no such object (LookupError)
|   +-- Forbidden          not allowed, or not logged in (PermissionError)
|   +-- Conflict           an object of that name is there, or it was changed meanwhile
|   +-- Unavailable        no answer, too many requests, a fault of the server (ConnectionError)
+-- NotServed              an InferenceService is there, but does not answer this request
+-- TuningFailed           the TuningJob has finished without an adapter; has its reason and message
+-- WaitTimeout            it was not over in time; the object continues (TimeoutError)
"""

from __future__ import annotations

from typing import Any

from llm_tuning.errors import InputError, Problem, TuningError


class ClusterError(TuningError, RuntimeError):
    """An answer of the API server that is no success."""


class NotFound(ClusterError, LookupError):  # noqa: N818 - the words of the API
    """404."""


class Forbidden(ClusterError, PermissionError):  # noqa: N818
    """401 or 403."""


class Conflict(ClusterError):  # noqa: N818
    """409."""


class Unavailable(ClusterError, ConnectionError):  # noqa: N818
    """No connection, no answer in time, 429 or 5xx."""

    def __init__(self, message: str, *, retry_after_seconds: float = 0.0) -> None:
        self.retry_after_seconds = retry_after_seconds
        """What the server asks for; 0 where it says nothing."""
        super().__init__(message)


class Expired(ClusterError):  # noqa: N818
    """410: the version that a watch continues from is forgotten. It never leaves the client, which lists again."""


class NotServed(TuningError, RuntimeError):  # noqa: N818
    """The service's own words; `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        self.status = status
        super().__init__(message)


class TuningFailed(TuningError, RuntimeError):  # noqa: N818
    """A TuningJob has finished without an adapter."""

    def __init__(self, name: str, reason: str, message: str) -> None:
        self.name, self.reason, self.message = name, reason, message
        super().__init__(f"TuningJob {name} has failed: {reason}: {message}")


class WaitTimeout(TuningError, TimeoutError):  # noqa: N818
    """Where the object was when time was up."""


def fault(doing: str, status: int, answer: Any) -> TuningError:
    """Build the error of an HTTP status; `answer` is the API server's Status object, or whatever else came."""
    answer = answer if isinstance(answer, dict) else {}
    text = f"{doing}: {answer.get('message') or f'HTTP status {status}'}"
    match status:
        case 400 | 422:
            return InputError(_problems(doing, answer))
        case 401:
            return Forbidden(f"{text}; log in to the cluster again, or see which user the kubeconfig's context has")
        case 403:
            return Forbidden(f"{text}; see docs/client.md for what a user needs to be allowed")
        case 404:
            return NotFound(text)
        case 409:
            return Conflict(text)
        case 410:
            return Expired(text)
    seconds = (answer.get("details") or {}).get("retryAfterSeconds") or 0
    return Unavailable(text, retry_after_seconds=float(seconds))


def _problems(doing: str, answer: dict[str, Any]) -> list[Problem]:
    """List a problem for each field that the server blames, in its words."""
    causes = (answer.get("details") or {}).get("causes") or []
    found = [Problem(str(cause.get("field", "")), str(cause.get("message", "is refused"))) for cause in causes]
    return found or [Problem(doing, str(answer.get("message") or "the API server finds fault with it"))]
