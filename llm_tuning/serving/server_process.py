"""The vLLM process: started in a group of its own, waited for, ended with everything it started."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from llm_tuning.core.stopping import stop_requested
from llm_tuning.engines.vllm.log import log_end
from llm_tuning.errors import InputError, Problem, TryAgain

STOP_SECONDS = 30.0
"""vLLM ends in 3 s after SIGTERM; after this it is killed."""
POLL_SECONDS = 0.25
SHOWN_LOG_LINES = 12


class ServerDied(Exception):  # noqa: N818 - it has ended, which is the whole message
    """vLLM ended before it answered."""


class ServerProcess:
    """A server in the background, its log and pid file in `folder`; raises InputError where that cannot be written."""

    def __init__(self, folder: Path, *, port: int) -> None:
        self.log = folder.absolute() / f"launch_llm_{port}.log"
        self.pid_file = self.log.with_suffix(".pid")
        self.left_behind = False
        """Whether there was a pid file of a server that runs no more; it is removed."""
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self._refuse_another(port)
            self.log.write_bytes(b"")
        except OSError as error:
            fix = "start from a folder you can write to, or set LAUNCH_LOG_DIR"
            rule = f"cannot be written ({error.strerror})"
            raise InputError(Problem(f"log folder {self.log.parent}", rule, fix)) from None

    def _refuse_another(self, port: int) -> None:
        """Lock the port's files; raises InputError where another launch holds them, whose server may not listen yet.

        The lock is the server's too, which inherits it, and so ends with both: a pid that is found in a file may by now
        be another process's.
        """
        self._lock = self.pid_file.with_suffix(".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = f"is taken: another launch of a server for it is running ({self.pid_file})"
            raise InputError(Problem(f"port {port}", rule, "choose another port, or stop that one")) from None
        self.left_behind = self.pid_file.exists()
        self.pid_file.unlink(missing_ok=True)

    def release(self) -> None:
        """Leave the port to the server alone, for as long as it runs."""
        self._lock.close()

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `command` in a session of its own, so that it outlives this shell and ends as one group."""
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                pass_fds=(self._lock.fileno(),),
            )
        self.pid_file.write_text(f"{self._process.pid}\n")

    def wait_until_it_answers(self, url: str, *, timeout_seconds: float) -> None:
        """Return when GET /health is 200; raises ServerDied, or TryAgain after the time limit or on a stop signal."""
        deadline = time.monotonic() + timeout_seconds
        with httpx.Client(trust_env=False, timeout=5) as client:
            while not self._healthy(client, url):
                if stop_requested():
                    raise TryAgain("Stopped", "stopped on request before vLLM was ready; it was ended too")
                if time.monotonic() > deadline:
                    raise TryAgain(
                        "NotReady",
                        f"vLLM did not answer within {timeout_seconds:.0f} s and was stopped; a large base needs "
                        f"longer (LAUNCH_TIMEOUT_SECONDS); the end of {self.log}:\n{self._log_end()}",
                    )
                time.sleep(POLL_SECONDS)

    def _healthy(self, client: httpx.Client, url: str) -> bool:
        code = self._process.poll()
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"signal {-code}"
            raise ServerDied(f"vLLM ended before it answered ({how}); the end of {self.log}:\n{self._log_end()}")
        try:
            return client.get(f"{url}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _log_end(self) -> str:
        log = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(f"  {line[:300]}" for line in log_end(log, lines=SHOWN_LOG_LINES))

    def stop(self) -> None:
        """End the whole group: SIGTERM, and SIGKILL for what is left after 30 s; the pid file goes, the log stays."""
        deadline = time.monotonic() + STOP_SECONDS
        self._signal(signal.SIGTERM)
        while self._signal(0) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._signal(signal.SIGKILL)
        self.pid_file.unlink(missing_ok=True)

    def _signal(self, number: int) -> bool:
        """Send a signal (0: only check); False when none is left. A leader that ended counts until it is reaped."""
        self._process.poll()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
            return True
        return False
