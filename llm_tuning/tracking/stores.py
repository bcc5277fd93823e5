"""From a tracking URI to the store that MLflow is given, and why a store could not be reached.

A plain folder (the documented `./mlruns`) means a sqlite store inside it: MLflow has refused file stores since 3.13.
A folder that already holds a file store is still written as one, so that old and new runs stay together.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llm_tuning.errors import Problem

DATABASE = "mlflow.db"
"""The sqlite store inside a plain folder: `mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db`."""
ARTIFACTS = "artifacts"

_HTTP = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_KNOWN = ("", "file", "databricks", *_HTTP, *_DATABASES)


@dataclass(frozen=True)
class Store:
    """Where a run is kept. `uri` may hold a password: only MLflow gets it; everything else is given `shown`."""

    uri: str
    shown: str
    folder: Path | None = None
    """The plain folder, if it is one; made when missing."""
    is_file_store: bool = False

    @property
    def is_local(self) -> bool:
        """On this machine's disk: no server that could be dead, so it may take the time it needs."""
        return self.folder is not None or self.uri.startswith("sqlite:")

    @property
    def artifact_location(self) -> str | None:
        """Where experiments made here keep their files; None leaves it to the server (or the file store)."""
        if self.folder is None or self.is_file_store:
            return None
        return (self.folder / ARTIFACTS).as_uri()


def resolve_store(uri: str) -> Store:
    """Return the store of a URI that `check_tracking_uri` accepts; reads a plain folder, writes nothing."""
    folder = _plain_folder(uri)
    if folder is None:
        return Store(uri=uri, shown=shown_uri(uri))
    if not (folder / DATABASE).exists() and any(folder.glob("*/meta.yaml")):
        return Store(uri=folder.as_uri(), shown=folder.as_uri(), folder=folder, is_file_store=True)
    database = f"sqlite:///{folder / DATABASE}"
    return Store(uri=database, shown=database, folder=folder)


def check_tracking_uri(uri: str, *, where: str = "tracking.uri") -> list[Problem]:
    """Check the text of a tracking URI and return its problems. Whether its server lives never fails a run."""
    shown = redact(uri)
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        return [Problem(where, f"must be a folder or a URI, got {shown!r}", f"write it as http://{shown}")]
    try:
        parts, port = urlsplit(uri), urlsplit(uri).port  # noqa: F841 - reading the port checks it
    except ValueError as error:
        return [Problem(where, f"is not a URI ({error}), got {shown!r}", "write it as http://host:5000")]
    scheme = parts.scheme.split("+")[0] if "://" in uri or uri.startswith("file:") else ""
    if scheme in _HTTP and not parts.hostname:
        return [Problem(where, f"names no server, got {shown!r}", "write it as http://host:5000")]
    if scheme not in _KNOWN and scheme not in {point.name for point in entry_points(group="mlflow.tracking_store")}:
        known = ", ".join(("a folder", *_KNOWN[2:]))
        return [Problem(where, f"has a scheme that MLflow does not know, got {shown!r}", f"known are: {known}")]
    folder = _plain_folder(uri)
    if folder is not None and folder.exists() and not folder.is_dir():
        return [
            Problem(where, f"must be a folder or a URI, but {shown} is a file", "for a sqlite file write sqlite:///")
        ]
    if folder is not None and "?" in str(folder):
        return [Problem(where, f"must be a folder without ? in its path, got {shown!r}", "choose another folder")]
    return []


def redact(text: str) -> str:
    """Return `text` with the user and password of every URI in it replaced by ***."""
    return re.sub(r"(?<=://)[^/\s'\"]*@", "***@", text)


def shown_uri(uri: str) -> str:
    """Return the URI as logs and manifests may hold it: no user, password or query (drivers take passwords there)."""
    return redact(uri.partition("?")[0])


def _plain_folder(uri: str) -> Path | None:
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path)).absolute()
    if "://" in uri or uri in ("databricks", "uc"):
        return None
    return Path(uri).expanduser().absolute()


@contextmanager
def store_lock(store: Store) -> Iterator[None]:
    """Make the plain folder of `store` and hold its lock; other stores look after themselves.

    One at a time where a sqlite store is made: two runs that create the tables at once would both fail.
    """
    if store.folder is None or store.is_file_store:
        yield
        return
    store.folder.mkdir(parents=True, exist_ok=True)
    with (store.folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def describe_fault(error: BaseException) -> str:
    """Return the innermost cause, not three libraries' wrapping of it; may still hold credentials.

    `connection refused`, `no answer in time`, or the error's own first words.
    """
    if isinstance(error, ModuleNotFoundError) and error.name == "mlflow":
        return "mlflow is not installed"
    chain = list(_causes(error))
    for cause in reversed(chain):
        if isinstance(cause, TimeoutError) or type(cause).__name__.endswith(("Timeout", "TimeoutError")):
            return "no answer in time"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
    innermost = next((cause for cause in reversed(chain) if str(cause)), error)
    return str(innermost) or type(innermost).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, what it was raised from, and what urllib3 and requests carry as arguments or `reason`."""
    seen: set[int] = set()
    pending: list[BaseException] = [error]
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        inner = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        pending += [cause for cause in inner if isinstance(cause, BaseException)]
