"""The demo's own hub: folders as model repositories, by the read-only part of the hub's API that a download needs.

    python hub.py FOLDER [--host HOST] [--port PORT]

FOLDER/owner/name is the repository owner/name. It has one branch, main, whose commit is a hash of what lies in the
folder at the moment. Any client of the hub downloads from here with HF_ENDPOINT=http://HOST:PORT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
Files = dict[str, bytes]


def git_hash(content: bytes) -> str:
    """Return what git calls a file with this content: clients compare it with what they got."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(files: Files) -> str:
    """Return 40 digits that are others as soon as a name or a byte is."""
    return git_hash(json.dumps({name: git_hash(content) for name, content in files.items()}).encode())


def read_repository(root: Path, owner: str, name: str) -> Files | None:
    """Return the files at the top of a repository, which is all that a model has; None where there is no such one."""
    folder = root / owner / name
    if not (NAME.fullmatch(owner) and NAME.fullmatch(name) and folder.is_dir()):
        return None
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


class Handler(BaseHTTPRequestHandler):
    """Three addresses: which commit a revision is, which files it has, and the bytes of a file."""

    protocol_version = "HTTP/1.1"
    root = Path()

    def do_GET(self) -> None:
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        match path:
            case ["api", "models", owner, name, ("revision" | "tree") as what, revision]:
                pass
            case [owner, name, "resolve" as what, revision, _]:
                pass
            case _:
                return self._refuse("RepoNotFound")
        files = read_repository(self.root, owner, name)
        if files is None:
            return self._refuse("RepoNotFound")
        commit = commit_of(files)
        if revision not in ("main", commit):
            return self._refuse("RevisionNotFound")
        if what == "revision":
            return self._answer_json({"id": f"{owner}/{name}", "sha": commit})
        if what == "tree":
            return self._answer_json(
                [
                    {"type": "file", "path": file, "size": len(content), "oid": git_hash(content)}
                    for file, content in files.items()
                ]
            )
        if path[-1] not in files:
            return self._refuse("EntryNotFound")
        content = files[path[-1]]
        return self._answer(200, content, {"X-Repo-Commit": commit, "ETag": f'"{git_hash(content)}"'})

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _answer_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, code: str) -> None:
        self._answer(404, b"", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _end(signal_number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the folders owner/name are")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    args = parser.parse_args()
    Handler.root = args.folder
    signal.signal(signal.SIGTERM, _end)
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    print(f"a hub over {args.folder} at http://{args.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
