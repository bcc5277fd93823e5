"""The operator's reporting endpoint as a process of its own: `python -m tests.support.report_endpoint CA_FILE`.

Serves TuningJob team/faq with pod p. The first line that it prints is its port and a token; each line that it reads is
answered with its memory in bytes, the longest time that its loop was late, and the reports that came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.support.cluster_tokens import ISSUER, Signer, published
from tuning_operator.core.audience import audience_of
from tuning_operator.reports.certificates import make_ca, make_serving_cert
from tuning_operator.reports.rate_limit import RateLimit
from tuning_operator.reports.server import ProgressServer
from tuning_operator.reports.tls import serving_context
from tuning_operator.reports.tokens import ClusterKeys, TokenVerifier


class Store:
    """TuningJob team/faq with pod p, which its Job owns."""

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        owner = {"kind": "TuningJob", "name": "faq", "uid": "job-uid", "controller": True}
        if (kind, name) == ("jobs", "faq-train"):
            return {"metadata": {"uid": "train-uid", "ownerReferences": [owner]}}
        return {"metadata": {"uid": "job-uid"}} if (namespace, name) == ("team", "faq") else None

    def pods_of(self, uid: str) -> list[dict[str, Any]]:
        owner = {"kind": "Job", "name": "faq-train", "uid": "train-uid", "controller": True}
        return [{"metadata": {"name": "p", "uid": "p-uid", "ownerReferences": [owner]}}]


async def serve(ca_file: Path) -> None:
    now = datetime.now(UTC)
    ca, signer = make_ca(now), Signer()
    ca_file.write_bytes(ca.certificate_pem)
    late, got = [0.0], [0]

    async def jwks() -> dict[str, Any]:
        return published(signer)

    async def beat() -> None:
        """As the Lease: a thing to do each second."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.1)
            late[0] = max(late[0], time.monotonic() - began - 0.1)

    def count(key: tuple[str, str], progress: object) -> None:
        got[0] += 1

    server = ProgressServer(
        TokenVerifier(ClusterKeys(jwks), Store(), lambda: ISSUER),
        count,
        serving_context(make_serving_cert(ca, ["localhost"], now)),
        host="127.0.0.1",
        port=0,
        limit=RateLimit(burst=1000),
    )
    await server.start()
    beating = asyncio.create_task(beat())
    print(json.dumps({"port": server.port, "token": signer.token(audience_of("team", "faq", "job-uid"))}), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        fields = Path("/proc/self/status").read_text().split()
        peak = int(fields[fields.index("VmHWM:") + 1]) * 1024
        print(json.dumps({"peak": peak, "late": late[0], "got": got[0]}), flush=True)
        late[0] = 0.0
    beating.cancel()
    await server.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
