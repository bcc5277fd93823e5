"""What every route is given: the backend, the settings, the files, and whose key asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from llm_tuning.openai_api.backend import Backend
from llm_tuning.openai_api.bases import Settings


class Files(Protocol):
    """What jobs ask of the files; `files.FileStore` is it."""

    def find(self, file_id: str) -> object | None:
        """Return an uploaded file, None where there is none; may block on the disk."""


@dataclass(frozen=True)
class Context:
    """One server's parts."""

    backend: Backend
    settings: Settings
    files: Files


@dataclass(frozen=True)
class Caller:
    """Whose key asked; the middleware of keys puts it into `request.state.caller`."""

    name: str = "local"
    role: str = "full"


def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


def _caller(request: Request) -> Caller:
    return cast(Caller, getattr(request.state, "caller", Caller()))


Served = Annotated[Context, Depends(_context)]
Asking = Annotated[Caller, Depends(_caller)]
