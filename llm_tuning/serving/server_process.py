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
from llm_tuning.engines.vllm.log import last_error, log_end, remedy
from llm_tuning.engines.vllm.probe import SERVER_FAILED, SERVER_UNREACHABLE
from llm_tuning.errors import InputError, Problem, TryAgain

STOP_SECONDS = 30.0
"""vLLM ends in 3 s after SIGTERM; after this it is killed."""
POLL_SECONDS = 0.25
DYING_SECONDS = 8.0
"""From the end of vLLM's engine, which is an error to the request under way, to that of its API server."""
SHOWN_LOG_LINES = 12
CAUSE_CHARACTERS = 500


class ServerDied(Exception):  # noqa: N818 - it has ended, which is the whole message
    """vLLM ended by itself, or fails for every request; the text has the cause and the log."""


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

    def explain(self, failure: TryAgain) -> Exception:
        """Say what a request's failure was: ServerDied where trying again would fail again, else the failure itself."""
        if failure.reason not in (SERVER_FAILED, SERVER_UNREACHABLE):
            return failure
        deadline = time.monotonic() + DYING_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._process.poll() is None:
            return ServerDied(self._cause(f"vLLM does not compute: {failure}"))
        return ServerDied(self._cause(f"vLLM ended while the adapter was being proven ({self._how()})"))

    def ended(self) -> str | None:
        """Return that vLLM has ended, with the cause that its log names and what to do about it; None while it runs."""
        return None if self._process.poll() is None else self._why(f"vLLM has ended ({self._how()})")

    def _how(self) -> str:
        code = self._process.poll()
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _healthy(self, client: httpx.Client, url: str) -> bool:
        if self._process.poll() is not None:
            raise ServerDied(self._cause(f"vLLM ended before it answered ({self._how()})"))
        try:
            return client.get(f"{url}/health").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _cause(self, what: str) -> str:
        """Return `what` happened with the cause that the log names, what to do about it, and the log's end."""
        return f"{self._why(what)}\nthe end of {self.log}:\n{self._log_end()}"

    def _why(self, what: str) -> str:
        cause = last_error(self._log(), most=CAUSE_CHARACTERS)
        fix = f"; {known}" if (known := remedy(cause)) else ""
        return f"{what}: {cause}{fix}"

    def _log_end(self) -> str:
        return "\n".join(f"  {line[:300]}" for line in log_end(self._log(), lines=SHOWN_LOG_LINES))

    def _log(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

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
