"""The authority of the operator's certificate, as pods that talk to it trust it."""

from __future__ import annotations

import ssl
from pathlib import Path


def trusting(ca_file: Path) -> ssl.SSLContext:
    """Trusts the certificates of `ca_file` alone, each for itself.

    cert-manager writes an intermediate authority there where its issuer has been given nothing above it.
    """
    context = ssl.create_default_context(cafile=str(ca_file))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
