"""How the demo runs commands, notices what disappoints, and ends what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llm_tuning.api import TuningConfig
from llm_tuning.api.yaml import load_yaml_mapping
from llm_tuning.openai_api.bases import Settings

DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo"

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stages

    monkeypatch.setattr(stages, "FOLDER", tmp_path)


def test_the_configuration_file_is_a_configuration() -> None:
    config = TuningConfig.parse(load_yaml_mapping(DEMO / "config.yaml"))
    assert config.mode == "sft"


def test_the_api_has_one_base_on_this_machine_and_on_the_cluster() -> None:
    here = Settings.load(DEMO / "api.yaml").bases
    there = Settings.load(DEMO / "api-values.yaml").bases
    assert list(here) == list(there) == ["gpt-4.1-mini"]
    mine, theirs = here["gpt-4.1-mini"], there["gpt-4.1-mini"]
    assert (mine.training, mine.lora) == (theirs.training, theirs.lora)
    assert mine.own_name == theirs.own_name


def test_another_exit_code_than_expected_disappoints() -> None:
    import demo

    assert "hello" in demo.run(f"{PYTHON} -c 'print(\"hello\"); exit(64)'", expect=64, shown=False)
    with pytest.raises(demo.Disappointed, match="exit code 3 instead of 0"):
        demo.run(f"{PYTHON} -c 'exit(3)'")
    with pytest.raises(demo.Disappointed, match="exit code 0 instead of 64"):
        demo.run(f"{PYTHON} -c 'pass'", expect=64)


def test_what_is_not_seen_disappoints() -> None:
    import demo

    demo.expect(True, "this")
    with pytest.raises(demo.Disappointed, match="not seen: that"):
        demo.expect(False, "that")


@pytest.mark.parametrize("fails", [False, True])
def test_the_server_is_ended_however_the_demo_ends(tmp_path: Path, fails: bool) -> None:
    import demo

    server = subprocess.Popen([PYTHON, "-c", "import signal; signal.pause()"], cwd=tmp_path, start_new_session=True)
    reaper = threading.Thread(target=server.wait)  # as init does for a server that outlives its launcher
    reaper.start()
    pid_file = tmp_path / "server.pid"
    pid_file.write_text(f"{server.pid}\n")
    try:
        if fails:
            with pytest.raises(demo.Disappointed, match="no answer"), demo._stopped_at_the_end(pid_file):
                raise demo.Disappointed("no answer")
        else:
            with demo._stopped_at_the_end(pid_file):
                pass
        assert not demo._runs(server.pid)
        reaper.join(10)
        assert server.returncode == -signal.SIGTERM
    finally:
        server.kill()
        reaper.join()


def test_a_stopped_demo_stops_the_command_it_is_running(tmp_path: Path) -> None:
    script = (
        "import sys, demo, pathlib, stages\n"
        "stages.FOLDER = pathlib.Path(sys.argv[1])\n"
        "demo._start_afresh = lambda: None\n"
        "demo.make_base_model = lambda: demo.run(\n"
        "    sys.executable + ' -c \"import os, time; print(os.getpid(), file=open(\\'pid\\', \\'w\\'), flush=True);'\n"
        "    ' time.sleep(600)\"')\n"
        "sys.exit(demo.run_demo(demo.show))\n"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(DEMO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    pid_file = tmp_path / "pid"
    _wait(lambda: pid_file.exists() and pid_file.read_text().strip().isdigit())
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "demo stopped" in error
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def _wait(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def test_ctrl_c_ends_the_training_of_the_base_model_with_a_sentence(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [PYTHON, str(DEMO / "make_base_model.py"), str(tmp_path / "base")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("training")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines() == ["stopped: the base model is not made; the same command makes it from the beginning"]


@pytest.mark.parametrize("script", ["make_base_model.py", "make_datasets.py", "answers.py"])
def test_no_script_of_the_demo_answers_ctrl_c_with_a_traceback(script: str) -> None:
    code = (
        "import argparse, runpy, sys\n"
        "def interrupted(parser):\n"
        "    raise KeyboardInterrupt\n"
        "argparse.ArgumentParser.parse_args = interrupted\n"
        f"runpy.run_path({str(DEMO / script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [PYTHON, "-c", code],
        env={**os.environ, "PYTHONPATH": str(DEMO)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("stopped")
