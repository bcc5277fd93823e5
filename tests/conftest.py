"""Fixtures every test may use, and what follows from the folder of a test: its mark and its time limit."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from devcluster.cluster import Clients
from tests.support import cores, devcluster, ids
from tests.support.tiny_base import make_base, make_tokenizer

TIMEOUTS = {
    "unit": 60,
    "docs": 60,
    "command": 120,
    "train": 600,
    "engine": 900,
    "cluster": 900,
    "full": 900,
    "bench": 1200,
}
"""Seconds of a test by its tier, fixtures included; a hang is found sooner where tests are quick."""

# One thread: the fixed thread count under which the CPU results are bit for bit the same, and no fight over two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a value that would be long or unreadable in an id by its argument."""
    return ids.id_of(val, argname)


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Fail the collection of a test whose id people cannot read, or that may be another one in the next worker."""
    made = yield
    for item in made if isinstance(made, list) else []:
        if (call := getattr(item, "callspec", None)) and (rule := ids.broken_id_rule(call.id)):
            pytest.fail(f"The id {call.id!r} of {item.originalname} {rule}", pytrace=False)
    return made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its tier, and limit its time."""
    for item in items:
        tier = item.path.relative_to(Path(__file__).parent).parts[0]
        item.add_marker(tier)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS[tier]))


def pytest_collection_finish() -> None:
    """Take what is loaded by now out of garbage collection, which took half the time of a small training run."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run a test that is `alone` beside no test of another worker; its time does not begin before."""
    with cores.hold_cores(os.environ[devcluster.SESSION], alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(autouse=True)
def _logging_of_nobody() -> None:
    """Forget where a command that ran in this process before wrote its lines: a stream that is closed by now."""
    logger = logging.getLogger("llm_tuning")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random two-layer Llama (vocabulary 512, hidden 64) with a chat template."""
    return make_base(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base's folder without weights: a byte-level tokenizer of 512 tokens and a ChatML template."""
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(path)
    return path


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
    """Stop the shared cluster and forget the lock, in pytest's own process and not in a worker of it."""
    if not hasattr(session.config, "workerinput"):
        devcluster.stop_shared_cluster()
        cores.forget(os.environ[devcluster.SESSION])
