"""docs/coming-from-openai.md, "A longer script to try": examples/openai/script.py as it is, and the real vLLM.

The page's own script runs here whole, for it chats; without its chat it is in tests/train/test_openai_local.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.openai_local import LocalServer, local_server, rows_of
from tests.support.page_runs import texts
from tests.support.pages import ROOT
from tests.support.vllm_server import VLLM_PYTHON, require_vllm

pytestmark = [pytest.mark.timeout(2400)]

PAGE = "docs/coming-from-openai.md"
MAKE, SERVE, EXPORT, RUN = texts(PAGE, "A longer script to try")
STEPS = ("--steps", "200")
"""Of the base's making: it learns less than the demo's, and enough."""
SCRIPT_SECONDS = 1500.0


def _words(command: str, program: str) -> list[str]:
    """A command of the page without its program, with the repository's files where they are."""
    first, *words = shlex.split(command)
    assert first == program
    return [str(ROOT / word) if word.startswith("examples/") else word for word in words]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """As the page makes a base and starts it, on a port of its own."""
    require_vllm()
    folder = tmp_path_factory.mktemp("script")
    subprocess.run([sys.executable, *_words(MAKE, "python"), *STEPS], cwd=folder, check=True)
    command, *flags = _words(SERVE, "tune-llm")
    assert (command, flags[:2]) == ("api", ["--port", "8001"])
    environment = {"VLLM_PYTHON": str(VLLM_PYTHON), "VLLM_CPU_KVCACHE_SPACE": "1"}
    with local_server(folder, *flags[2:], environment=environment) as started:
        yield started


def _run(server: LocalServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script as the page does; nothing but its environment says where."""
    _, *variables = shlex.split(EXPORT.replace(":8001/", f":{server.port}/"))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=server.folder,
        env=os.environ | dict(variable.split("=", 1) for variable in variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=SCRIPT_SECONDS,
    )


def test_the_script_uses_openais_sdk_alone() -> None:
    [path] = _words(RUN, "python")
    imported = re.findall(r"^(?:from|import) ([\w.]+)", Path(path).read_text(), flags=re.MULTILINE)
    assert {name.split(".")[0] for name in imported} == {"sys", "time", "pathlib", "typing", "openai"}


def test_the_unchanged_script_refuses_trains_chats_compares_and_leaves_nothing(server: LocalServer) -> None:
    done = _run(server, *_words(RUN, "python"))
    said = f"{done.stdout}\n{done.stderr}\n{server.log.read_text()[-6000:]}"
    print(said)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    [refusal] = [line for line in lines if line.startswith("  param=training_file: ")]
    assert re.search(r"file-[0-9a-v]{24}\b.*row 7\b.*content", refusal), refusal
    assert "spec." not in refusal, "no field that a request does not have"
    models = re.findall(r"^ +ok: (ft:gpt-4\.1-mini:local:\S+) is deleted$", done.stdout, flags=re.MULTILINE)
    assert [model.split(":")[3] for model in models] == ["help-desk", "no-ads"]
    assert f"  info: job has succeeded, and its model is {models[0]}" in lines
    assert re.search(r"^  info: step \d+ of \d+: train loss", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^  checkpoint at step \d+: .*full_valid_loss", done.stdout, flags=re.MULTILINE)
    assert f"{models[0]} answers" in done.stdout
    for what in (
        "the same answer is streamed",
        "SFT has the house style, and DPO keeps it",
        "SFT advertises, and DPO does so less",
    ):
        assert f"  ok: {what}" in lines
    assert lines[-1] == "done"
    client = server.client
    assert list(client.files.list()) == []
    assert [model.id for model in client.models.list() if model.id.startswith("ft:")] == []
    assert [job.status for job in client.fine_tuning.jobs.list()] == ["succeeded", "succeeded", "failed"]
    assert list((server.folder / "datasets" / "uploads").glob("file-*")) == []


def test_a_model_that_is_not_there_ends_the_script_and_leaves_no_file(server: LocalServer) -> None:
    done = _run(server, *_words(RUN, "python"), "gpt-4o")
    assert done.returncode == 1
    assert re.fullmatch(r"failed: .*'gpt-4o' does not exist here; there are gpt-4\.1-mini\.\n", done.stderr)
    assert list(server.client.files.list()) == []


def test_the_script_of_the_page_chats_with_what_it_has_trained(server: LocalServer) -> None:
    (server.folder / "rows.jsonl").write_bytes(rows_of())
    [script] = texts(PAGE, "The script")
    done = _run(server, "-c", script.replace(":8001/", f":{server.port}/"))
    assert done.returncode == 0, done.stderr
    *_, answer = done.stdout.splitlines()
    assert answer
    assert not answer[0].isdigit(), f"a line of the figures, and no answer: {answer}"
