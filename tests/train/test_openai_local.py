"""docs/coming-from-openai.md on this machine: the script of the page, and the server as the page starts it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.openai_local import LocalServer, local_server, rows_of
from tests.support.pages import ROOT, Snippet, snippets

PAGE = "docs/coming-from-openai.md"
CHAT = "\nanswer = "
"""Where the script of the page chats, which needs vLLM: tests/full/openai_api/test_script.py."""
OF_README = [each.text for each in snippets(ROOT / "README.md") if each.heading == "With OpenAI's SDK"]


def _of(heading: str) -> Snippet:
    (found,) = (snippet for snippet in snippets(ROOT / PAGE) if snippet.heading == heading)
    return found


@pytest.fixture
def server(tmp_path: Path, tiny_base: Path) -> Iterator[LocalServer]:
    """As the page starts it, on a port of its own."""
    shutil.copytree(tiny_base, tmp_path / "base" / "qwen3-0.6b")
    program, command, *flags = shlex.split(_of("On this machine").text)
    assert (program, command) == ("tune-llm", "api")
    at = flags.index("--port")
    with local_server(tmp_path, *flags[:at], *flags[at + 2 :]) as started:
        yield started


def _run(server: LocalServer, rows: bytes, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script with these rows, and with the variables that README sets."""
    (server.folder / "rows.jsonl").write_bytes(rows)
    _, *variables = shlex.split(OF_README[1].replace(":8001/", f":{server.port}/"))
    environment = os.environ | dict(variable.split("=", 1) for variable in variables)
    return subprocess.run(
        [sys.executable, "-c", script.replace(":8001/", f":{server.port}/")],
        cwd=server.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_the_script_of_the_page_trains_and_prints_its_figures(server: LocalServer) -> None:
    training, chats, _ = _of("The script").text.partition(CHAT)
    assert chats
    done = _run(server, rows_of(), training)
    assert done.returncode == 0, done.stderr
    assert "info job has succeeded, and its model is ft:gpt-4.1-mini:local:help-desk:" in done.stdout
    assert re.search(r"^ft:gpt-4\.1-mini:local:help-desk:[0-9a-v]{8} [1-9]\d*$", done.stdout, flags=re.MULTILINE)
    assert re.search(r"^6,\d", done.stdout, flags=re.MULTILINE), "the figures of the sixth step"
    models = [path.parent.name for path in server.folder.glob("models/*/model.json")]
    assert len(models) == 1


def test_the_script_as_it_was_at_openai_says_which_row_is_wrong(server: LocalServer) -> None:
    assert OF_README[0] == _of("On this machine").text
    script, changed = re.subn(r"(?m)^client = OpenAI\(.*\)$", "client = OpenAI()", _of("The script").text)
    assert changed == 1
    done = _run(server, rows_of(messages=[{"role": "user", "content": "no answer"}]), script)
    assert done.returncode == 1
    assert re.search(r"^training_file: .*file-[0-9a-v]{24}.*row 3", done.stderr, flags=re.MULTILINE), done.stderr
    assert not list(server.folder.glob("models/*/model.json"))


def test_a_second_server_on_the_folder_is_refused(server: LocalServer) -> None:
    second = LocalServer(server.folder, *server.flags)
    with pytest.raises(AssertionError, match="is in use by another `tune-llm api`"):
        second.start()
    second.client.close()
