"""Fixtures every test may use: a tiny base model made once a session, and a clean environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Clients
from tests.support import devcluster
from tests.support.tiny_base import make_base

# One thread: the fixed thread count under which the CPU results are bit for bit the same, and no fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama (vocabulary 512, hidden 64) with a chat template."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("MLFLOW_", "KUBEFLOW_", "LLM_TUNING_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def cluster() -> Clients:
    """A real Kubernetes that all tests share: each works in namespaces of its own."""
    return devcluster.shared_cluster()


def pytest_configure(config: Any) -> None:
    """Workers inherit who is to stop what they start."""
    if not hasattr(config, "workerinput"):
        os.environ[devcluster.SESSION] = str(os.getpid())


def pytest_sessionfinish(session: Any) -> None:
    """Stop the shared cluster, in pytest's own process and not in a worker of it."""
    if not hasattr(session.config, "workerinput"):
        devcluster.stop_shared_cluster()
