"""Servers that nobody here wrote, from .venv-servers: Olah, a hub over plain git repositories, and moto's S3."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.missing import skip_or_fail
from tests.support.vllm_server import free_port

SERVERS = Path(__file__).resolve().parents[2] / ".venv-servers/bin"
READY_SECONDS = 60
GIT = ("git", "-c", "user.name=Tests", "-c", "user.email=tests@example.org", "-c", "init.defaultBranch=main")


def require_servers() -> None:
    """Skip on a machine without the environment; in CI that is a failure."""
    if not SERVERS.exists():
        skip_or_fail("no .venv-servers: make it with `make servers-env`")


def git_commit(repository: Path, files: Mapping[str, bytes], *, branch: str = "main") -> str:
    """Write a commit of these files, and no others, to a branch, and return it."""

    def git(*arguments: str) -> str:
        done = subprocess.run([*GIT, *arguments], cwd=repository, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    if not (repository / ".git").exists():
        repository.mkdir(parents=True, exist_ok=True)
        git("init", "--quiet")
    git("checkout", "--quiet", "-B", branch)
    for path in repository.rglob("*"):
        if ".git" not in path.relative_to(repository).parts and path.is_file():
            path.unlink()
    for name, content in files.items():
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(content)
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", "rows")
    return git("rev-parse", "HEAD")


@contextmanager
def olah(folder: Path, repositories: Path) -> Iterator[str]:
    """Run Olah, offline, over `repositories/{models,datasets}/owner/name`; yields its address."""
    require_servers()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _running(olah_command(folder, repositories, port), folder, f"{url}/api/models/nobody/nothing"):
        yield url


def olah_command(folder: Path, repositories: Path, port: int) -> list[str]:
    """Write Olah's settings into `folder`; returns the command that starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = f"""
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{folder / "cache"}"
mirrors-path = ["{repositories}"]
[accessibility]
offline = true
"""
    config = folder / "olah.toml"
    config.write_text(settings)
    return [str(SERVERS / "olah-cli"), "--config", str(config), "--log-path", str(folder / "logs")]


@contextmanager
def moto_s3(folder: Path) -> Iterator[str]:
    """Run moto's S3 and check keys as AWS does from the second request of a test on; yields its address."""
    require_servers()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _running([str(SERVERS / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], folder, f"{url}/moto-api/"):
        yield url


@contextmanager
def _running(command: list[str], folder: Path, probe: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(probe):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, f"not ready: {(folder / 'server.log').read_text()}"
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(20)


def _answers(probe: str) -> bool:
    try:
        urllib.request.urlopen(probe, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
