"""The certificates of the progress server where cert-manager makes them: files of a mounted Secret.

The kubelet brings the files up to date, and the operator needs no right to any Secret.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from llm_tuning.errors import TuningError
from tuning_operator.reports.tls import Tls, build_context, load_pair

NAMES = ("ca.crt", "tls.crt", "tls.key")
FITTING_ISSUER = "the issuer of the Certificate must be one that fills in ca.crt too, such as a CA issuer"


class TlsFilesUnusable(TuningError, RuntimeError):  # noqa: N818 - says what happened
    """The files cannot be served with; the message says which and why."""


class TlsFolder:
    """ca.crt, tls.crt and tls.key in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._served: tuple[bytes, ...] = ()

    def load(self) -> Tls:
        """Load the pair and the CA that are in the folder now; raises TlsFilesUnusable."""
        ca, *pair = self._served = self._read()
        return Tls(_context(*pair), ca.decode())

    def renew(self, context: ssl.SSLContext) -> str | None:
        """Load files that have changed into `context`; returns the CA in PEM then, otherwise None.

        Raises TlsFilesUnusable and leaves `context` as it is: a change may be seen half made.
        """
        files = self._read()
        if files == self._served:
            return None
        ca, *pair = files
        _context(*pair)  # tried on another one first: a context with half a pair serves no client
        load_pair(context, *pair)
        self._served = files
        return ca.decode()

    def _read(self) -> tuple[bytes, ...]:
        return tuple(_read(self._folder / name) for name in NAMES)


def _read(file: Path) -> bytes:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise TlsFilesUnusable(f"{file}: {error.strerror}; {FITTING_ISSUER}") from None
    if not text.strip():
        raise TlsFilesUnusable(f"{file} is empty; {FITTING_ISSUER}")
    return text


def _context(certificate_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    try:
        return build_context(certificate_pem, key_pem)
    except ssl.SSLError as error:
        raise TlsFilesUnusable(f"tls.crt and tls.key are no pair that can be served with: {error}") from None
