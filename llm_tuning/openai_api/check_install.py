"""What `helm test` of charts/llm-tuning-api runs: OpenAI's SDK against the API, from a pod of its own.

It makes a key in a Secret of its own, that the API has mounted, waits until the kubelet has brought it there, and takes
it back at the end. It starts no training.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import openai

from llm_tuning.client import ClusterError, Connection
from llm_tuning.client.api import MERGE_PATCH, Api
from llm_tuning.errors import TuningError
from llm_tuning.openai_api.keys import KeyRecord, digest, new_key, utc_now

KEY_NAME = "helm-test"
KEY_SECONDS = 600
PATIENCE_SECONDS = 200.0
"""The kubelet looks at a mounted Secret about once a minute."""
ROWS = b'{"messages": [{"role": "user", "content": "Is it there?"}, {"role": "assistant", "content": "Yes."}]}\n'


class Differs(Exception):  # noqa: N818 - a word for the log
    """An answer is not what it has to be."""


TRIED = (openai.OpenAIError, ClusterError, OSError, Differs)


class Check:
    """The steps, in their order."""

    def __init__(self, base_url: str, key: str) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=30)
        self._stranger = openai.OpenAI(base_url=base_url, api_key=new_key(), max_retries=0, timeout=30)

    def refuses_a_wrong_key(self) -> str:
        """Check that a key that nobody made is refused; raises otherwise."""
        try:
            self._stranger.files.list()
        except openai.AuthenticationError:
            return "a key that nobody made is refused"
        raise Differs("a key that nobody made is taken")

    def keeps_files(self) -> str:
        """Check that a file is taken, listed, given back as it was, and deleted."""
        name = f"helm-test-{secrets.token_hex(4)}.jsonl"
        made = self._client.files.create(file=(name, ROWS), purpose="fine-tune")
        try:
            _hold(made.bytes == len(ROWS), f"the file has {made.bytes} bytes, not {len(ROWS)}")
            _hold(any(each.id == made.id for each in self._client.files.list()), "the file is not listed")
            _hold(self._client.files.content(made.id).read() == ROWS, "the file's content is another one")
        finally:
            self._client.files.delete(made.id)
        return "a new key counts; a file is taken, listed, given back as it was, and deleted"

    def reads_jobs(self) -> str:
        """Check that jobs can be listed."""
        return f"jobs are listed ({len(self._client.fine_tuning.jobs.list(limit=100).data)})"

    def lists_models(self) -> str:
        """Check that there are bases, and that each can be described."""
        models = list(self._client.models.list())
        _hold(bool(models), "there is no model")
        _hold(self._client.models.retrieve(models[0].id) == models[0], f"{models[0].id} is described in two ways")
        return f"models are listed ({len(models)}; {models[0].id} is {models[0].owned_by.removeprefix('llm-tuning: ')})"

    def refuses_a_wrong_model(self) -> str:
        """Check that a job on a base that does not exist is refused by its parameter, and none is made."""
        try:
            self._client.fine_tuning.jobs.create(model="no-such-model", training_file="file-none")
        except openai.APIStatusError as error:
            _hold(error.param in ("model", "training_file"), f"refused for param {error.param!r}: {error}")
            return f"a wrong job is refused: {error.code}, param {error.param}"
        raise Differs("a job on no-such-model was taken")


def _hold(holds: bool, otherwise: str) -> None:
    """Raise Differs unless it holds."""
    if not holds:
        raise Differs(otherwise)


def main(
    environment: Mapping[str, str] = os.environ,
    *,
    connection: Connection | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> int:
    """Check everything, however much fails; returns the exit code."""
    key = new_key()
    deadline = time.monotonic() + patience_seconds
    try:
        with _key(key, connection or Connection.load(), environment["KEY_SECRET"]):
            check = Check(environment["OPENAI_BASE_URL"], key)
            steps = (
                check.refuses_a_wrong_key,
                check.keeps_files,
                check.reads_jobs,
                check.lists_models,
                check.refuses_a_wrong_model,
            )
            passed = [_passes(step, deadline) for step in steps]
            return 0 if all(passed) else 1
    except TuningError as error:
        sys.stdout.write(f"failed: the test's key: {error}\n")
        return 1


@contextmanager
def _key(key: str, connection: Connection, secret: str) -> Iterator[None]:
    """Keep a record of the key in the Secret for as long as this lasts; raises a ClusterError."""
    expires = utc_now() + timedelta(seconds=KEY_SECONDS)
    record = KeyRecord(sha256=digest(key), role="full", expires=expires).encode().encode()
    asyncio.run(_write(connection, secret, base64.b64encode(record).decode()))
    try:
        yield
    finally:
        asyncio.run(_write(connection, secret, None))


async def _write(connection: Connection, secret: str, record: str | None) -> None:
    api = Api(connection)
    try:
        path = f"/api/v1/namespaces/{connection.namespace}/secrets/{secret}"
        await api.call("PATCH", path, body={"data": {KEY_NAME: record}}, content_type=MERGE_PATCH)
    finally:
        await api.close()


def _passes(step: Callable[[], str], deadline: float) -> bool:
    """Try a step again until the deadline: the key comes to each pod of the API at a time of its own."""
    while True:
        try:
            sys.stdout.write(f"ok: {step()}\n")
        except TRIED as error:
            if time.monotonic() < deadline and _may_pass(error):
                time.sleep(1)
                continue
            sys.stdout.write(f"failed: {step.__name__}: {type(error).__name__}: {error}\n")
            return False
        finally:
            sys.stdout.flush()
        return True


def _may_pass(error: Exception) -> bool:
    """Return whether another try may help."""
    return not isinstance(error, openai.APIStatusError) or error.status_code == 401 or error.status_code >= 500


if __name__ == "__main__":
    sys.exit(main())
