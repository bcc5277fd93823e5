"""`tune-llm api` with a model that it has trained before: vLLM starts for who asks, and ends with the server."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.openai_local import LocalServer, local_server
from tests.support.serving import ANSWER_TOKENS, BASE, PROMPT, ServedFiles, make_files
from tests.support.vllm_server import VLLM_PYTHON, require_vllm

TUNED = "ft:served:local:faq:00000000"
MARK = "STARTED_BY_TEST"
END_SECONDS = 40.0
FINISHED = "2026-12-01T10:00:00Z"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ServedFiles:
    """A folder with a base, an adapter, and the job that has made it."""
    made = make_files(tmp_path_factory.mktemp("local"), {"ft_a": {"b_scale": 0.05, "seed": 1}})
    of_api = "openai.tuning.llmtuning.dev"
    kept = {"model": BASE, "base": BASE, "training_file": "file-0", "fine_tuned_model": TUNED}
    job: dict[str, Any] = {
        "apiVersion": "tuning.llmtuning.dev/v1alpha1",
        "kind": "TuningJob",
        "metadata": {
            "name": "ftjob-0",
            "namespace": "local",
            "uid": "1",
            "generation": 1,
            "resourceVersion": "1",
            "creationTimestamp": FINISHED,
            "labels": {f"{of_api}/api": "true"},
            "annotations": {f"{of_api}/request": json.dumps(kept)},
        },
        "spec": {
            "model": {"path": f"base/{BASE}"},
            "dataset": {"path": "datasets/rows.jsonl"},
            "volume": {"claimName": "local"},
        },
        "status": {
            "modelId": "ft_a",
            "completionTime": FINISHED,
            "conditions": [
                {"type": kind, "status": "True", "reason": "Succeeded", "lastTransitionTime": FINISHED}
                for kind in ("Succeeded", "Finished")
            ],
        },
    }
    path = made.folder / "api" / "tuningjobs" / "ftjob-0.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(job))
    return made


@contextmanager
def _serving(files: ServedFiles, mark: str) -> Iterator[LocalServer]:
    require_vllm()
    given = {"VLLM_PYTHON": str(VLLM_PYTHON), "VLLM_CPU_KVCACHE_SPACE": "1", MARK: mark}
    with local_server(files.folder, environment=given) as server:
        yield server


def _say(server: LocalServer, model: str) -> str:
    """Ask as a script does: the SDK waits and tries again by itself."""
    chat = server.client.with_options(max_retries=8).chat.completions
    said = chat.create(model=model, messages=PROMPT, max_tokens=ANSWER_TOKENS, temperature=0)  # type: ignore[arg-type]
    return said.choices[0].message.content or ""


def _outlived(mark: str) -> list[str]:
    """Command lines of the processes that a server has started, and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [each for each in found if each]


def _wait_for_their_end(mark: str) -> None:
    deadline = time.monotonic() + END_SECONDS
    while outlived := _outlived(mark):
        assert time.monotonic() < deadline, outlived
        time.sleep(0.2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "told to end"])
def test_a_model_of_an_earlier_server_answers_and_vllm_ends_with_the_server(files: ServedFiles, number: int) -> None:
    mark = f"{os.getpid()}-{number}"
    with _serving(files, mark) as server:
        assert _say(server, TUNED) == files.answers["ft_a"]
        assert _say(server, BASE) == files.answers[BASE]
        assert any("vllm" in each for each in _outlived(mark))
        with pytest.raises(openai.NotFoundError, match=f"there are {BASE}"):
            _say(server, "other")
        assert server.end(number) == (0 if number == signal.SIGTERM else -number)
        _wait_for_their_end(mark)


def test_without_vllm_a_chat_says_what_to_install(files: ServedFiles) -> None:
    with local_server(files.folder) as server:
        with pytest.raises(openai.InternalServerError, match="does not import vllm") as refused:
            server.client.chat.completions.create(model=BASE, messages=PROMPT)  # type: ignore[arg-type]
        assert refused.value.code == "model_not_ready"
        assert server.client.fine_tuning.jobs.list().data
