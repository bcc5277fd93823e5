"""What `helm test` runs: the operator is ready, its progress server is who pods take it for, the CRDs are served.

From a pod of its own, over the Service and with the CA that pods are given: what a trainer would meet. It asks
the API server only what every service account may ask.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llm_tuning.api import inference_service, tuning_job
from llm_tuning.api.kube import API_VERSION
from llm_tuning.core.ca import trusting

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_SECONDS = 30.0
"""An endpoint of a pod that has just become ready takes some seconds to be known on every node."""
REQUEST_SECONDS = 5.0


@dataclass(frozen=True)
class Installation:
    """Where everything is to be reached."""

    http_url: str
    """Of health and metrics."""
    progress_url: str
    ca_file: Path
    api_url: str
    account: Path
    """Folder with the pod's token and the API server's ca.crt."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], account: Path) -> Installation:
        """Read HTTP_URL, PROGRESS_URL, CA_FILE, and the API server's address as the kubelet sets it."""
        host, port = environment["KUBERNETES_SERVICE_HOST"], environment["KUBERNETES_SERVICE_PORT"]
        address = f"[{host}]" if ":" in host else host
        return cls(
            http_url=environment["HTTP_URL"],
            progress_url=environment["PROGRESS_URL"],
            ca_file=Path(environment["CA_FILE"]),
            api_url=f"https://{address}:{port}",
            account=account,
        )

    def is_ready(self) -> str:
        """Check that /readyz answers 200; raises OSError otherwise."""
        _get(f"{self.http_url}/readyz")
        return "the operator is ready"

    def serves_progress(self) -> str:
        """Check that the server answers under a certificate of the CA for the name in its URL; raises OSError."""
        try:
            _get(f"{self.progress_url}/", trusting(self.ca_file))
        except urllib.error.HTTPError as error:  # it answers, and refuses who has no token
            if error.code >= 500:
                raise
        return f"{self.progress_url} is served under a certificate that pods trust"

    def serves_crds(self) -> str:
        """Check that the API server serves both kinds; raises OSError otherwise."""
        context = ssl.create_default_context(cafile=self.account / "ca.crt")
        token = (self.account / "token").read_text()
        answer = json.loads(_get(f"{self.api_url}/apis/{API_VERSION}", context, token))
        missing = {tuning_job.PLURAL, inference_service.PLURAL} - {each["name"] for each in answer["resources"]}
        if missing:
            raise FileNotFoundError(f"{API_VERSION} is served without {', '.join(sorted(missing))}")
        return f"the API server has {tuning_job.KIND} and {inference_service.KIND} in {API_VERSION}"


def main(
    environment: Mapping[str, str] = os.environ, *, account: Path = ACCOUNT, patience_seconds: float = PATIENCE_SECONDS
) -> int:
    """Check everything, however much fails; returns the exit code."""
    installed = Installation.from_environment(environment, account)
    deadline = time.monotonic() + patience_seconds
    passed = [
        _passes(check, deadline) for check in (installed.is_ready, installed.serves_progress, installed.serves_crds)
    ]
    return 0 if all(passed) else 1


def _passes(check: Callable[[], str], deadline: float) -> bool:
    while True:
        try:
            sys.stdout.write(f"ok: {check()}\n")
        except (OSError, ValueError) as error:
            if time.monotonic() < deadline:
                time.sleep(1)
                continue
            sys.stdout.write(f"failed: {check.__name__}: {type(error).__name__}: {error}\n")
            return False
        return True


def _get(url: str, context: ssl.SSLContext | None = None, token: str = "") -> bytes:
    """Return the body of the answer, without a proxy; raises HTTPError (an OSError) for any status but 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with opener.open(request, timeout=REQUEST_SECONDS) as answer:
        return bytes(answer.read())


if __name__ == "__main__":
    sys.exit(main())
