"""The CA of the operator's certificate, as pods that talk to it trust it."""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca_file: Path) -> ssl.SSLContext:
    """Build a TLS context that trusts the certificates of `ca_file` alone, each for itself.

    cert-manager writes an intermediate CA there where its issuer has been given nothing above it.
    """
    context = ssl.create_default_context(cafile=str(ca_file))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
