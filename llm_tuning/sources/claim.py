"""Single flight without a lock that can go stale: who fetches says so every few seconds, and who waits listens.

    sources/.work/<name>/claim.7      the newest number counts; its holder rewrites it every BEAT_SECONDS

- The next number is taken by creating its file, which the file system gives to one alone, on network volumes, too.
- A holder that has said nothing for STALE_SECONDS of the *waiter's* clock is dead, and so is one that released: the
  waiter takes the next number. No two clocks are compared.
- On one machine the kernel is quicker: the holder keeps an flock, and it is gone with the process. It counts only where
  holder and waiter run under one kernel (same boot id), for locks of a network volume may outlive a machine.
- The file with the highest number is never removed by itself, only the folder as a whole. So whoever was slow and
  creates a lower number sees the higher one right afterwards, and has lost.
- A holder that was only paused, and has lost its claim, may still write. That harms nothing: at one commit both write
  the same bytes to the same places, and hashes are compared before anything is published.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""Longer than what a network file system remembers of a file that changes (three seconds), and than a short hang."""
POLL_SECONDS = 0.5
_RELEASED = b"released\n"
_NO_LOCK = "-"


class Claim:
    """One number in a work folder, held by this process until `release`."""

    def __init__(self, work: Path, number: int, descriptor: int, beat_seconds: float) -> None:
        self._work, self._number, self._descriptor = work, number, descriptor
        self._lost = False
        self._ended = threading.Event()
        self._seconds = beat_seconds
        self._beat = 0
        self._thread = threading.Thread(target=self._run, name="claim", daemon=True)

    @property
    def lost(self) -> bool:
        """Another process has taken over, since nothing was heard of this one."""
        return self._lost

    def release(self) -> None:
        """Let the next one in at once."""
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            os.pwrite(self._descriptor, _RELEASED, 0)
            os.ftruncate(self._descriptor, len(_RELEASED))
            os.fsync(self._descriptor)
        os.close(self._descriptor)

    def _start(self, boot: str) -> None:
        self._boot = boot
        self._say()
        self._thread.start()

    def _say(self) -> None:
        os.pwrite(self._descriptor, f"{self._boot}\n{self._beat:012d}\n".encode(), 0)
        os.fsync(self._descriptor)

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._beat += 1
            with suppress(OSError):  # a full or hanging volume: whoever waits decides
                self._say()
                self._lost = self._lost or _newest(self._work) > self._number


@contextmanager
def claimed(
    work: Path,
    *,
    is_done: Callable[[], bool],
    waiting: Callable[[], None],
    beat_seconds: float = BEAT_SECONDS,
    stale_seconds: float = STALE_SECONDS,
) -> Iterator[Claim | None]:
    """Yield a claim on `work` once this process is the one to fetch, or None once `is_done`.

    `waiting` is called about twice a second while another one fetches; it may raise.
    """
    watch = _Watch(work, stale_seconds)
    while True:
        if is_done():
            yield None
            return
        work.mkdir(parents=True, exist_ok=True)
        number = watch.free()
        claim = None if number is None else _take(work, number, beat_seconds)
        if claim is None:
            waiting()
            time.sleep(POLL_SECONDS)
            continue
        try:
            done = is_done()  # its last holder may have finished since
            yield None if done else claim
        finally:
            claim.release()
        return


class _Watch:
    """What a waiter has heard of the newest claim."""

    def __init__(self, work: Path, stale_seconds: float) -> None:
        self._work, self._stale = work, stale_seconds
        self._heard: tuple[int, bytes] | None = None
        self._since = 0.0

    def free(self) -> int | None:
        """Return the number that may be taken now; None while its holder lives."""
        newest = _newest(self._work)
        if newest == 0:
            return 1
        path = self._work / f"claim.{newest}"
        try:
            said = path.read_bytes()
        except OSError:
            said = b""
        if said.startswith(_RELEASED) or _is_dead_here(path, said):
            return newest + 1
        now = time.monotonic()
        if self._heard != (newest, said):
            self._heard, self._since = (newest, said), now
        return newest + 1 if now - self._since > self._stale else None


def _newest(work: Path) -> int:
    """Return the highest number; 0 where there is none. The folder is listed, so that no remembered name counts."""
    try:
        names = os.listdir(work)
    except FileNotFoundError:
        return 0
    numbers = (name.removeprefix("claim.") for name in names if name.startswith("claim."))
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _take(work: Path, number: int, beat_seconds: float) -> Claim | None:
    """Create the claim with `number`; None where another one has it, or a higher one."""
    path = work / f"claim.{number}"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o664)
    except (FileExistsError, FileNotFoundError):
        return None
    boot = _boot()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a volume without locks
        boot = _NO_LOCK
    if _newest(work) != number:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        return None
    claim = Claim(work, number, descriptor, beat_seconds)
    claim._start(boot)
    return claim


def _is_dead_here(path: Path, said: bytes) -> bool:
    """Return whether the holder ran under this kernel and is gone: then its lock is free."""
    boot = said.split(b"\n")[0].decode(errors="replace")
    if boot in ("", _NO_LOCK) or boot != _boot():
        return False
    try:
        with path.open("rb") as claim:
            fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)  # like no other
