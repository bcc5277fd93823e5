"""The server as a process: the application behind its edge, on uvicorn, with a log that holds no key."""

from __future__ import annotations

import logging
import signal
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.middleware import Middleware

from llm_tuning.openai_api.app import create_app
from llm_tuning.openai_api.backend import Backend
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.edge import Edge, without_keys
from llm_tuning.openai_api.files import FileStore
from llm_tuning.openai_api.keys import KeyRing
from llm_tuning.openai_api.limits import KeyLimits
from llm_tuning.openai_api.metrics import Metrics
from llm_tuning.openai_api.slow_clients import TimedProtocol

DRAIN_SECONDS = 165
"""How long answers under way may go on after a SIGTERM; the chart's terminationGracePeriodSeconds is above it."""
KEEP_ALIVE_SECONDS = 75
"""Longer than proxies keep an idle connection: none of them writes to one that is being closed."""


def build_app(
    backend: Backend, settings: Settings, keys: KeyRing | None = None, service_key: str | None = None
) -> FastAPI:
    """Build the application behind its edge; without `keys` nobody is asked for one."""
    limits = settings.limits
    files = FileStore(backend.root, file_bytes=limits.file_bytes, total_bytes=limits.total_bytes)
    of_key = KeyLimits(limits.requests_per_minute, limits.parallel_answers, limits.upload_bytes_per_day)
    edge = Middleware(Edge, keys=keys, limits=of_key, metrics=Metrics())
    return create_app(Context(backend, settings, files, service_key), middleware=[edge])


def serve(
    backend: Backend,
    settings: Settings,
    *,
    host: str,
    port: int,
    keys: KeyRing | None = None,
    service_key: str | None = None,
    drain_seconds: int = DRAIN_SECONDS,
) -> int:
    """Serve until a signal; returns the exit code. No host is every interface; uvicorn exits where it cannot listen."""
    config = uvicorn.Config(
        build_app(backend, settings, keys, service_key),
        host=host,
        port=port,
        http=TimedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,  # the edge has a line for each request
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = uvicorn.Server(config)

    def end(number: int, frame: FrameType | None) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, end)  # uvicorn has one of its own, and raises the signal again at its end
    server.run()
    return 0 if server.started else 1


class _Formatter(logging.Formatter):
    """Takes out whatever looks like a key, also of tracebacks: a net below all that writes none."""

    def format(self, record: logging.LogRecord) -> str:
        return without_keys(super().format(record))


def log_to_stderr() -> None:
    """Log as every other pod of ours does."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request to the cluster
