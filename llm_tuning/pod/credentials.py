"""Take the credentials of the Secret that the spec names from its mounted files into this process's environment.

As files, and after the interpreter has started: as the container's own environment every key of the Secret would also
decide what runs (PYTHONPATH, LD_PRELOAD), and whoever may write a Secret and a file on the claim could run code as the
trainer. So a key is taken only where it is a name that trackers and their clients read, and not one that makes them
run a program.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_tuning.pod.contract import CREDENTIALS_VARIABLE
from llm_tuning.pod.secrets import remember_secrets

log = logging.getLogger(__name__)

TAKEN = re.compile(
    r"(MLFLOW|AWS|AZURE|GOOGLE|DATABRICKS)_[A-Z0-9_]+"
    r"|HF_TOKEN|[A-Z]+_PROXY|[a-z]+_proxy"
    r"|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|SSL_CERT_FILE|SSL_CERT_DIR"
    r"|PGUSER|PGPASSWORD"
)
RUN_PROGRAMS = (
    "AWS_CONFIG_FILE",  # credential_process in it is a command
    "AWS_SHARED_CREDENTIALS_FILE",
    "AZURE_CONFIG_DIR",
    "AZURE_EXTENSION_DIR",
    "GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES",
)
"""Names that TAKEN would allow by their beginning."""
LONGEST_VALUE = 100_000
"""Bytes; the kernel starts no process with a longer variable than 128 KiB."""


def adopt_credentials() -> None:
    """Set what is taken, where the container does not set it itself; log the names of what is not, never a value."""
    if folder := os.environ.get(CREDENTIALS_VARIABLE):
        _adopt(Path(folder), "spec.tracking.credentialsSecret")


@contextmanager
def credentials_of(folder: Path | None, field: str) -> Iterator[None]:
    """Have the keys of a source's Secret in the environment for the block alone: another source has another's."""
    before = dict(os.environ)
    try:
        if folder is not None:
            _adopt(folder, field)
        yield
    finally:
        remember_secrets()  # for the message of an error that is on its way
        os.environ.clear()
        os.environ.update(before)


def _adopt(folder: Path, field: str) -> None:
    ignored = []
    for file in _keys(folder):
        value = file.read_bytes().removesuffix(b"\n")
        if is_taken(file.name) and len(value) <= LONGEST_VALUE and b"\0" not in value:
            os.environ.setdefault(file.name, os.fsdecode(value))
        else:
            ignored.append(file.name)
    if ignored:
        log.warning(
            "%s: not taken into the environment: %s; MLFLOW_*, AWS_*, AZURE_*, GOOGLE_*, DATABRICKS_*, HF_TOKEN, "
            "*_PROXY, PGUSER, PGPASSWORD and the paths of CA bundles are",
            field,
            ", ".join(ignored),
        )


def is_taken(name: str) -> bool:
    """Return whether a key of the Secret becomes an environment variable."""
    return TAKEN.fullmatch(name) is not None and name not in RUN_PROGRAMS


def _keys(folder: Path) -> Iterator[Path]:
    """Yield the files of a mounted Secret, without the kubelet's own links."""
    return (file for file in sorted(folder.iterdir()) if not file.name.startswith("..") and file.is_file())
