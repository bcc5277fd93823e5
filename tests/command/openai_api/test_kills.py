"""A server killed where it writes a TuningJob: a client that tries again gets the job of its first try, or makes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import openai
import pytest

from tests.support.api_process import Server
from tests.support.fake_api_server import FakeApiServer

KEY = {"Idempotency-Key": "once"}


class KilledAtTheWrite:
    """Kills the server at its first write of a TuningJob, and starts the next one.

    What was written is never stored (`before`), stored before the kill (`after`), or stored only as the next server
    writes, which has not found it (`late`).
    """

    def __init__(self, server: Server, api_server: FakeApiServer, moment: str) -> None:
        self._server, self._moment = server, moment
        self._add = api_server.cluster.add
        self._under_way: dict[str, Any] | None = None
        self.killed = 0
        api_server.cluster.add = self._write  # type: ignore[method-assign]

    def _write(self, kind: str, raw: dict[str, Any]) -> dict[str, Any]:
        if self.killed:
            if self._under_way is not None:
                self._add(kind, self._under_way)
            return self._add(kind, raw)
        if self._moment == "after":
            self._add(kind, raw)
        self._under_way = raw if self._moment == "late" else None
        process = self._server.process
        assert process is not None
        process.kill()
        self.killed = process.wait()
        self._server.run()
        raise ConnectionResetError


@pytest.mark.parametrize(
    ("moment", "header"),
    [("before", KEY), ("after", KEY), ("late", KEY), ("before", {}), ("after", {})],
    ids=["before", "after", "late", "before-without-a-key", "after-without-a-key"],
)
def test_a_server_that_is_killed_at_the_write_and_a_client_that_tries_again_make_one_job(
    server: Server, api_server: FakeApiServer, moment: str, header: dict[str, str]
) -> None:
    api_server.time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    key = server.add_key("alice")
    server.start()
    with server.client(key, max_retries=20) as client:
        rows = b'{"prompt": "p", "completion": "c"}\n'
        file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
        asked: Any = {"model": "tiny", "training_file": file.id, "extra_headers": header}
        kill = KilledAtTheWrite(server, api_server, moment)
        job = client.fine_tuning.jobs.create(**asked)
        assert kill.killed == -9
        assert [made["metadata"]["name"] for made in api_server.all("tuningjobs")] == [job.id]
        assert [each.id for each in client.fine_tuning.jobs.list()] == [job.id]
        if header:
            assert client.fine_tuning.jobs.create(**asked).id == job.id
            with pytest.raises(openai.BadRequestError) as caught:
                client.fine_tuning.jobs.create(**asked, seed=1)
            assert caught.value.code == "idempotency_key_reused"
            assert len(api_server.all("tuningjobs")) == 1
