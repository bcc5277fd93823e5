"""Scripts that a serving pod runs, run."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_tuning.agent.contract import (
    AGENT_PORT,
    DesiredRoutes,
)
from llm_tuning.agent.starting import DRAINED_FILE, RUN_DIR
from tests.support.operator_objects import SETTINGS
from tests.support.service_objects import make_service
from tuning_operator.core.cache import DEPLOYMENTS
from tuning_operator.core.settings import Settings
from tuning_operator.inference_service.children import WAIT_FOR_DRAIN_SECONDS, build_parts
from tuning_operator.inference_service.observed import build_observed_service

REPORTING = SETTINGS.model_copy(
    update={"progress_url": "https://op.llm-tuning.svc:8443", "ca_pem": "CERTIFICATE", "vllm_image": "vllm:1"}
)


def parts(settings: Settings = REPORTING, **spec: Any) -> dict[str, dict[str, Any]]:
    observed = build_observed_service(make_service(**spec), spec=None, parts={})
    assert observed.spec is not None, observed.problems
    return build_parts(observed, observed.spec, settings, DesiredRoutes())


def pod(settings: Settings = REPORTING, **spec: Any) -> dict[str, Any]:
    return dict(parts(settings, **spec)[DEPLOYMENTS]["spec"]["template"]["spec"])


def container(made: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in [*made["initContainers"], *made["containers"]] if c["name"] == name)


@pytest.mark.parametrize("agent", ["never started", "answers", "has drained"])
def test_vllm_does_not_wait_for_an_agent_that_answers_nobody(tmp_path: Path, agent: str) -> None:
    """The container's own script, with a port and a folder of the test's."""
    script = container(pod(), "vllm")["lifecycle"]["preStop"]["exec"]["command"][-1]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if agent == "answers":
            listener.listen()
        if agent == "has drained":
            (tmp_path / DRAINED_FILE).touch()
        port = str(listener.getsockname()[1])
        script = script.replace(str(AGENT_PORT), port).replace(f'"{RUN_DIR}/', f'"{tmp_path}/')
        script = script.replace(f"+ {WAIT_FOR_DRAIN_SECONDS}", "+ 1.5").replace("sleep(0.5)", "sleep(0.05)")
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
        waited = time.monotonic() - began
    assert waited > 1.5 if agent == "answers" else waited < 1.5
