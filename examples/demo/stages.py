"""How a demo speaks, runs commands and checks what they show. Both demos work in `.demo/` of the repository."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".demo"

STOP_SECONDS = 60.0
"""How long a command may take to end after SIGTERM; a training run saves a checkpoint first."""


class Disappointed(Exception):  # noqa: N818 - the demo is, and says by what
    """A link of the chain did not show what it is there to show."""


_announced = 0


def stage(title: str, text: str) -> None:
    """Announce what comes next."""
    global _announced  # noqa: PLW0603 - a counter for the reader
    _announced += 1
    print(f"\n{bold(f'{_announced}. {title}')}\n{text}", flush=True)


def run(command: str, *, expect: int = 0, shown: bool = True, quiet: bool = False) -> str:
    """Run `command` in the demo's folder; raises Disappointed on another exit code than `expect`.

    Its output goes to the terminal as it comes. With `shown` False it is returned, too, and comes at the end; with
    `quiet` it is returned only.
    """
    if not quiet:
        print(f"\n{bold('$ ' + command)}", flush=True)
    capture = quiet or not shown
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": None if quiet else subprocess.STDOUT}
    process = subprocess.Popen(shlex.split(command), cwd=FOLDER, text=True, **(streams if capture else {}))
    try:
        output, _ = process.communicate()
    except BaseException:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
        raise
    if capture and not quiet:
        print(output, end="", flush=True)
    if process.returncode != expect:
        raise Disappointed(f"exit code {process.returncode} instead of {expect} from: {command}")
    if expect:
        print(f"(exit code {process.returncode}, as it should be)")
    return output or ""


def run_demo(show: Callable[[], None]) -> int:
    """Run a whole demo and return its exit code: 1 where it disappoints, 130 where Ctrl-C or SIGTERM ends it."""
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.monotonic()
    try:
        show()
    except Disappointed as error:
        print(f"\nDEMO FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo stopped; everything it started has ended", file=sys.stderr)
        return 130
    print(f"\nDemo done in {time.monotonic() - started:.0f} s.")
    return 0


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def exit_code(main: Callable[[], None], *, stopped: str) -> int:
    """Run a script's `main`; Ctrl-C ends it with 130 and the sentence `stopped`."""
    try:
        main()
    except KeyboardInterrupt:
        print(f"stopped: {stopped}", file=sys.stderr)
        return 130
    return 0


def expect(held: bool, what: str) -> None:
    """Say that `what` was seen; raises Disappointed if it was not."""
    if not held:
        raise Disappointed(f"not seen: {what}")
    print(f"  [seen] {what}", flush=True)


def environment() -> dict[str, str]:
    """This Python's own folder first in PATH, so that `tune-llm` and `python` are those that run the demo."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "HF_HUB_OFFLINE": "1",
        # Threads that wait sleep instead of spinning: where something else uses the cores, too, this is 5x faster.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def script(name: str) -> str:
    return os.path.relpath(Path(__file__).resolve().parent / name, FOLDER)


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text
