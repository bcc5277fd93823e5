"""What importing the client brings along, and logging in by another program."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

from llm_tuning.client import (
    AsyncTuningClient,
)
from tests.support.fake_api_server import FakeApiServer, write_kubeconfig


def test_importing_it_is_light() -> None:
    code = "import sys, llm_tuning.client; print(*{'torch', 'kopf', 'mlflow', 'kubernetes'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_without_the_package_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['kubernetes'] = None\n"
        "from llm_tuning.client import TuningClient\n"
        "try: TuningClient()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (
        said.strip() == "InputError the client needs the package kubernetes; install llm-tuning with its extra `client`"
    )


async def test_an_exec_plugin_logs_in(tmp_path: Path, server: FakeApiServer) -> None:
    plugin = tmp_path / "login"
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "t0"}}
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    exec_user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": str(plugin),
            "args": [],
            "interactiveMode": "Never",
        }
    }
    file = write_kubeconfig(tmp_path / "kubeconfig", server.connection.server, exec_user)
    async with AsyncTuningClient(kubeconfig=file) as client:
        assert await client.list() == []
    assert server.requests[0][2]["Authorization"] == "Bearer t0"
