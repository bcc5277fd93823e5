"""What every route is given: the backend, the settings, the files, and whose key asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, cast

from fastapi import Depends, Request

from llm_tuning.openai_api.backend import Backend
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.catalog import Catalog
from llm_tuning.openai_api.files import FileStore
from llm_tuning.openai_api.proxy import Proxy


@dataclass(frozen=True)
class Context:
    """One server's parts."""

    backend: Backend
    settings: Settings
    files: FileStore
    service_key: str | None = None
    """Of `apiKeySecret`: what is sent to the services that ask for that key."""

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog(self.backend, self.settings)

    @cached_property
    def proxy(self) -> Proxy:
        return Proxy(self.backend, self.settings, self.catalog, self.service_key)


@dataclass(frozen=True)
class Caller:
    """Whose key asked; the middleware of keys puts it into `request.state.caller`."""

    name: str = "local"
    role: str = "full"


# FastAPI calls what is no coroutine on the threads that downloads wait on.
async def _context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


async def _caller(request: Request) -> Caller:
    return cast(Caller, getattr(request.state, "caller", Caller()))


Served = Annotated[Context, Depends(_context)]
Asking = Annotated[Caller, Depends(_caller)]
