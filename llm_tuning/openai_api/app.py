"""The web application: routes, and every refusal in OpenAI's form."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from llm_tuning._version import __version__
from llm_tuning.client.errors import ClusterError
from llm_tuning.errors import InputError
from llm_tuning.openai_api.context import Context
from llm_tuning.openai_api.errors import ApiError, of_cluster, of_input, of_validation
from llm_tuning.openai_api.file_uses import sweep
from llm_tuning.openai_api.publishing import publish
from llm_tuning.openai_api.routes import completions, files, health, jobs, models

log = logging.getLogger(__name__)

ROUTERS: Sequence[APIRouter] = (health.router, files.router, jobs.router, models.router, completions.router)
Loop = Callable[[Context], Awaitable[None]]
"""What goes on beside the requests, until it is cancelled."""
LOOPS: Sequence[Loop] = (sweep, publish)
AGAIN_SECONDS = 5.0
"""Before one of them begins again after a fault."""

NOT_HERE = {
    "responses": "chat is /v1/chat/completions",
    "embeddings": "this server fine-tunes and passes chat on",
    "uploads": "a file is uploaded whole: client.files.create",
    "batches": "send the requests to /v1/chat/completions",
    "evals": "the held-out scores of a job are in its checkpoints and in its result file",
    "fine_tuning": "there are jobs here, neither permissions of checkpoints nor graders",
}
"""OpenAI's other groups of endpoints, and what there is instead."""


def create_app(
    context: Context,
    *,
    middleware: Sequence[Middleware] = (),
    routers: Sequence[APIRouter] = ROUTERS,
    loops: Sequence[Loop] = LOOPS,
) -> FastAPI:
    """Build the application; `middleware` comes before the routes, the first one outermost."""
    app = FastAPI(
        title="llm-tuning: the fine-tuning API",
        version=__version__,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan(context, loops),
        middleware=list(middleware),
        exception_handlers={
            ApiError: _refuse,
            ClusterError: _refuse,
            InputError: _refuse,
            RequestValidationError: _refuse,
            HTTPException: _refuse,
            Exception: _refuse,
        },
    )
    app.state.context = context
    for router in routers:
        app.include_router(router)
    return app


def _lifespan(context: Context, loops: Sequence[Loop]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work: list[Callable[[], Awaitable[None]]] = [context.backend.run, *(partial(loop, context) for loop in loops)]
        tasks = [asyncio.ensure_future(_kept_up(each)) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await context.backend.close()

    return lifespan


async def _kept_up(work: Callable[[], Awaitable[None]]) -> None:
    """Begin work again after a fault that it does not know itself: else it would end, and nobody would hear of it."""
    said = ""
    while True:
        try:
            return await work()
        except Exception as error:
            if repr(error) != said:
                log.exception("a fault in what goes on beside the requests; it begins again")
            said = repr(error)
        await asyncio.sleep(AGAIN_SECONDS)


async def _refuse(request: Request, error: Exception) -> Response:
    return refusal(_as_api_error(request, error))


def refusal(error: ApiError) -> JSONResponse:
    """Build the answer; for middleware, too, which no handler of exceptions stands around."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def _as_api_error(request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            return of_validation(error.errors())
        case InputError():
            return of_input(error)
        case ClusterError():
            return of_cluster(error)
        case HTTPException():
            return _no_route(request, error)
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return ApiError(500, f"An unexpected {type(error).__name__}; the server's log has more.", code="server_error")


def _no_route(request: Request, error: HTTPException) -> ApiError:
    url = f"{request.method} {request.url.path}"
    if isinstance(error.__cause__, ApiError):  # of the edge, while a route read the body
        return error.__cause__
    if error.status_code == 400:  # FastAPI has no other
        return ApiError(400, "The body cannot be read: it must be a JSON object, in UTF-8.", code="invalid_json")
    if error.status_code not in (404, 405):
        return ApiError(error.status_code, str(error.detail), code="invalid_request", headers=error.headers)
    parts = request.url.path.strip("/").split("/")
    hint = NOT_HERE.get(parts[1], "") if len(parts) > 1 and parts[0] == "v1" else "every endpoint begins with /v1/"
    text = f"Invalid URL ({url}): this server does not have it{'; ' + hint if hint else ''}."
    return ApiError(error.status_code, text, code="unknown_url", headers=error.headers)
