"""A server that speaks the hub's API from memory and has every fault that a hub can have, one at a time, on demand.

Not a judge of the good way (Olah is): it is here for what no well-behaved server does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

CHUNK = 2**16


@dataclass(frozen=True)
class Request:
    """One that was answered."""

    method: str
    path: str
    start: int
    token: str | None
    host: str


@dataclass
class Answer:
    """What a fault changes about the answer with a file's bytes, or about any answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    stop_after: int | None = None
    """Bytes of the body until the connection is cut (or hangs, with `stall_seconds`)."""
    stall_seconds: float = 0.0
    corrupt: bool = False
    ignore_range: bool = False
    redirect: str = ""
    """Another host, which is asked for the same path."""
    redirect_to: str = ""
    """Another path of this one."""
    chunk_pause_seconds: float = 0.0


Fault = Callable[[Request], Answer | None]
"""Asked before each answer; None answers as usual."""


@dataclass
class Repository:
    """Files by commit; branches by name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private_to: str | None = None
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit to a branch and return it."""
        digest = hashlib.sha1(repr(sorted((n, hashlib.sha256(c).hexdigest()) for n, c in files.items())).encode())
        commit = digest.hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class HubServer:
    """Listens at `host` until `close`; `repositories` are by `models/owner/name` and `datasets/owner/name`."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.bytes_sent = 0
        self.lfs_above = 100
        """Files above this many bytes have a sha256 in the listing, others git's hash."""
        self._lock = threading.Lock()
        self._tags: dict[int, str] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _answer(hub, self)

            do_HEAD = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._server = Server((host, 0), Handler)
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def model(self, name: str, files: dict[str, bytes]) -> str:
        """Put a model repository up and return its commit."""
        return self.repositories.setdefault(f"models/{name}", Repository()).commit(files)

    def dataset(self, name: str, files: dict[str, bytes]) -> str:
        """Put a data set repository up and return its commit."""
        return self.repositories.setdefault(f"datasets/{name}", Repository()).commit(files)

    def once(self, answer: Answer, *, of: str = "/resolve/", times: int = 1) -> None:
        """Answer the next requests whose path holds `of` with a fault."""
        left = [times]

        def fault(request: Request) -> Answer | None:
            if of not in request.path or left[0] <= 0:
                return None
            left[0] -= 1
            return answer

        self.faults.append(fault)

    def file_requests(self) -> list[Request]:
        """Return those for the bytes of files."""
        return [request for request in self.requests if "/resolve/" in request.path]

    def tag(self, data: bytes) -> str:
        """Return the hash that the hub has for a file; remembered, for large ones take a second."""
        if id(data) not in self._tags:
            self._tags[id(data)] = hashlib.sha256(data).hexdigest() if len(data) > self.lfs_above else git_hash(data)
        return self._tags[id(data)]

    def count(self, count: int) -> None:
        with self._lock:
            self.bytes_sent += count

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def hub_server(host: str = "127.0.0.1") -> Iterator[HubServer]:
    """Run one for the block."""
    server = HubServer(host)
    try:
        yield server
    finally:
        server.close()


def tiny_model(weights: int = 3000, **config: Any) -> dict[str, bytes]:
    """Return the files of a repository with everything that is taken of a model, and some of what is not."""
    return {
        "config.json": json.dumps({"model_type": "llama", **config}).encode(),
        "model.safetensors": content(weights),
        "tokenizer.json": b'{"model": {}}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "LICENSE": b"Apache-2.0",
        "README.md": b"# A card\n",
        "pytorch_model.bin": b"a pickle",
        "modeling_own.py": b"raise SystemExit",
        "original/consolidated.00.pth": b"another pickle",
    }


def content(size: int, seed: int = 0) -> bytes:
    """Return bytes that repeat nowhere near, cheaply."""
    block = hashlib.shake_256(str(seed).encode()).digest(max(1, min(size, 2**20)))
    turns = ((7 * index) % len(block) for index in range(-(-size // len(block))))
    return b"".join(block[turn:] + block[:turn] for turn in turns)[:size]


def _answer(hub: HubServer, handler: BaseHTTPRequestHandler) -> None:
    asked = handler.headers.get("Range", "")
    start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
    token = (handler.headers.get("Authorization") or "").removeprefix("Bearer ") or None
    request = Request(handler.command, unquote(handler.path), start, token, handler.headers.get("Host", ""))
    hub.requests.append(request)
    answer = next((answer for fault in hub.faults if (answer := fault(request)) is not None), Answer())
    if answer.redirect or answer.redirect_to:
        to = answer.redirect_to or answer.redirect + handler.path
        return _send(handler, 307, {"Location": to, "Content-Length": "0"}, b"")
    if answer.status:
        return _send(handler, answer.status, answer.headers, b"")
    path = urlsplit(handler.path).path
    kind, rest = ("models", path[12:]) if path.startswith("/api/models/") else ("datasets", path[14:])
    if path.startswith("/api/"):
        owner, name, *what = rest.split("/")
        return _api(hub, handler, request, f"{kind}/{owner}/{name}", what, answer)
    kind = "datasets" if path.startswith("/datasets/") else "models"
    owner, name, _, commit, *file = path.removeprefix("/datasets").strip("/").split("/")
    repository = hub.repositories.get(f"{kind}/{owner}/{name}")
    if refusal := _refusal(repository, request):
        return _send(handler, *refusal, b"")
    assert repository is not None
    commit = repository.branches.get(commit, commit)
    body = repository.commits[commit][unquote("/".join(file))]
    told = {"X-Repo-Commit": commit, "ETag": f'"{hub.tag(body)}"'}  # huggingface_hub's client wants them
    return _send_file(hub, handler, body, request, replace(answer, headers={**told, **answer.headers}))


def _refusal(repository: Repository | None, request: Request) -> tuple[int, dict[str, str]] | None:
    if repository is None or (repository.private_to is not None and request.token != repository.private_to):
        return (404 if request.token else 401), {"X-Error-Code": "RepoNotFound"}
    return (403, {"X-Error-Code": "GatedRepo"}) if repository.gated else None


def _api(  # noqa: PLR0917
    hub: HubServer, handler: BaseHTTPRequestHandler, request: Request, name: str, what: list[str], answer: Answer
) -> None:
    repository = hub.repositories.get(name)
    if refusal := _refusal(repository, request):
        return _send(handler, *refusal, b"")
    assert repository is not None
    if not what:
        return _send(handler, 200, answer.headers, b"{}")
    revision = unquote(what[1])
    commit = repository.branches.get(revision, revision)
    if commit not in repository.commits:
        return _send(handler, 404, {"X-Error-Code": "RevisionNotFound"}, b"")
    if what[0] == "revision":
        return _send(handler, 200, answer.headers, json.dumps({"sha": commit, "id": name}).encode())
    items = [_item(hub, path, data) for path, data in repository.commits[commit].items()]
    return _send(handler, 200, answer.headers, json.dumps(items).encode())


def _item(hub: HubServer, path: str, data: bytes) -> dict[str, Any]:
    is_lfs = len(data) > hub.lfs_above
    oid = "0" * 40 if is_lfs else hub.tag(data)
    item: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if is_lfs:
        item["lfs"] = {"oid": hub.tag(data), "size": len(data), "pointerSize": 134}
    return item


def git_hash(data: bytes) -> str:
    """Return what git calls a file with this content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(status)
    for key, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(key, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def _send_file(hub: HubServer, handler: BaseHTTPRequestHandler, body: bytes, request: Request, answer: Answer) -> None:
    start = 0 if answer.ignore_range else request.start
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    handler.send_header("Content-Length", str(len(body) - start))
    for key, value in answer.headers.items():
        handler.send_header(key, value)
    handler.end_headers()
    if handler.command == "HEAD":
        return
    view, at = memoryview(body), start
    end = len(body) if answer.stop_after is None else min(len(body), start + answer.stop_after)
    while at < end:
        piece = view[at : min(end, at + CHUNK)]
        if answer.corrupt:
            piece = memoryview(bytes(byte ^ 0x55 for byte in piece))
        handler.wfile.write(piece)
        at += len(piece)
        hub.count(len(piece))
        if answer.chunk_pause_seconds:
            time.sleep(answer.chunk_pause_seconds)
    if at < len(body):
        handler.wfile.flush()
        time.sleep(answer.stall_seconds)
        handler.close_connection = True
        handler.connection.close()
