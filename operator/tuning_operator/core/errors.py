"""The operator's errors.

TuningError
+-- ClusterError           the API server refused or cannot be reached; the worker tries again, more and more slowly
    +-- NotFound           the object has gone
    +-- AlreadyExists      an object of that name is there
    +-- Conflict           the object was changed since it was read
    +-- Forbidden          the Role lacks a permission
    +-- Invalid            the API server finds fault with the object
    +-- Unavailable        no answer, too many requests, or a fault of the server
LeaseLost                  another operator may be at work: this one must not write
"""

from __future__ import annotations

from llm_tuning.errors import TuningError


class ClusterError(TuningError, RuntimeError):
    """An answer of the API server that is no success."""


class NotFound(ClusterError):  # noqa: N818 - the words of the API
    """404."""


class AlreadyExists(ClusterError):  # noqa: N818
    """409, reason AlreadyExists."""


class Conflict(ClusterError):  # noqa: N818
    """409 of another reason."""


class Forbidden(ClusterError):  # noqa: N818
    """401 or 403."""


class Invalid(ClusterError):  # noqa: N818
    """400 or 422."""


class Unavailable(ClusterError):  # noqa: N818
    """No connection, no answer in time, 429 or 5xx."""


class LeaseLost(TuningError, RuntimeError):  # noqa: N818
    """The Lease is not, or no longer, ours."""
