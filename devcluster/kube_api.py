"""The few calls to the API server that the node's own loops make; tests and people use kubectl."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"


class KubeApi:
    """The API server as the user of a kubeconfig. Failed calls raise OSError (urllib.error.HTTPError is one)."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as both:
            for name in ("client-certificate-data", "client-key-data"):
                both.write(base64.b64decode(user[name]))
            both.flush()
            context.load_cert_chain(both.name)
        handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def text(self, path: str) -> str:
        with self._opener.open(self._server + path, timeout=10) as reply:
            return str(reply.read().decode())

    def get(self, path: str) -> dict[str, Any]:
        return dict(json.loads(self.text(path)))

    def apply(self, path: str, body: dict[str, Any]) -> None:
        """Server-side apply of `body` to the object at `path`."""
        self.patch(f"{path}?fieldManager=devcluster&force=true", body, APPLY)

    def patch(self, path: str, body: dict[str, Any], kind: str = MERGE) -> None:
        data, headers = json.dumps(body).encode(), {"Content-Type": kind}
        request = urllib.request.Request(self._server + path, data, headers, method="PATCH")
        with self._opener.open(request, timeout=10):
            pass
