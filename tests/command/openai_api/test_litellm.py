"""litellm, a client that nobody here wrote, on the server as a process: files, jobs, and chats streamed and whole."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.api_process import Server
from tests.support.fake_api_server import FakeApiServer
from tests.support.missing import skip_or_fail
from tests.support.openai_chats import CITY, WEATHER, tune_and_serve

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / ".venv-clients/bin/python"
SCRIPT = ROOT / "tests/support/litellm_client.py"


@pytest.fixture(autouse=True)
def _needs_litellm() -> None:
    if not PYTHON.exists():
        skip_or_fail("no .venv-clients: make it with `make clients-env`")


def test_litellm_makes_files_and_jobs_and_chats_with_tools(
    server: Server, api_server: FakeApiServer, service: str
) -> None:
    key = server.add_key("litellm")
    server.start()
    model = tune_and_serve(server, key, api_server, service)
    environment = os.environ | {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{server.port}/v1",
        "OPENAI_API_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it fetches prices as it is imported
    }
    done = subprocess.run(
        [PYTHON, "-P", SCRIPT, model],
        env=environment,
        input=json.dumps(WEATHER),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])  # it says things of its own before
    assert found["files"] == {
        "bytes": 93,
        "same": True,
        "listed": True,
        "deleted": True,
        "gone": [404, "file_not_found", "id"],
    }
    jobs = found["jobs"]
    assert (jobs["epochs"], jobs["seed"], jobs["listed"]) == (2, 3, True)
    assert jobs["states"] == ["queued", "queued", "cancelled"]
    assert jobs["no_file"] == [400, "invalid_training_file", "training_file"]
    raw = api_server.cluster.get("tuningjobs", jobs["id"])
    assert raw is not None
    assert (raw["spec"]["training"]["epochs"], raw["spec"]["suspend"]) == (2, True)
    chats = found["chats"]
    assert chats["whole"] == chats["streamed"] == f"I am {model}. Grüße"
    assert chats["reasons"] == ["stop", "stop"]
    assert chats["calls"]["whole"] == chats["calls"]["streamed"] == ["tool_calls", "weather", CITY]
    assert chats["after"] == "The weather: Sun"
    assert chats["unknown"][0] == 404  # its own error has neither code nor param
