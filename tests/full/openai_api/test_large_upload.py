"""A file of 2 GiB through a server process, up and down, by its memory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import openai
import pytest

from tests.support.openai_server import file_server

GIB = 2**30
ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
MOST_MIB = 200


@pytest.mark.alone
def test_two_gibibytes_go_up_and_down_in_less_than_200_mebibytes_of_memory(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROW)
    os.truncate(rows, 2 * GIB)  # its zeros take no room here
    with rows.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    with file_server(tmp_path, file_bytes=2 * GIB) as server, openai.OpenAI(base_url=server.url, api_key="k") as client:
        made = client.files.create(file=rows, purpose="fine-tune")
        assert made.bytes == 2 * GIB
        assert server.most_memory_mib() < MOST_MIB
        back = hashlib.sha256()
        with client.files.with_streaming_response.content(made.id) as content:
            for chunk in content.iter_bytes(2**20):
                back.update(chunk)
        assert back.hexdigest() == digest
        assert server.most_memory_mib() < MOST_MIB
        print(f"most memory of the server: {server.most_memory_mib()} MiB")
        client.files.delete(made.id)
