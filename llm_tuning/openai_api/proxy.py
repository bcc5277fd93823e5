"""A chat on its way to the service of its model, and the answer on its way back, piece by piece.

The request's bytes go on as they came, but for the name of a base that its service calls otherwise; of its headers
nothing goes on, so that no service sees a caller's key. A connection of its own for each lets the cluster spread them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_tuning.agent.body import Bodies, Body
from llm_tuning.agent.http.completion import BrokeOff, Completion, NotConnected
from llm_tuning.agent.refusal import Refused
from llm_tuning.client.objects import InferenceServiceView
from llm_tuning.engines.vllm.stream import DATA, EVENT_END, error_text
from llm_tuning.openai_api.backend import Backend
from llm_tuning.openai_api.bases import Settings
from llm_tuning.openai_api.catalog import Catalog
from llm_tuning.openai_api.errors import NEVER_AGAIN, ApiError, retry_after
from llm_tuning.openai_api.models import Named, condition_of

RETRY_AFTER_SECONDS = 30
"""What a client is told to wait for a model that is being loaded; a base takes minutes."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 2.0
"""Between two tries while a chat is held."""
IDLE_SECONDS, TOTAL_SECONDS = 310.0, 960.0
"""A little more than the service's own limits: it has the better words."""
HELD_BYTES = 2**16
"""Of an answer that the client has not taken yet; more is left with the service."""
WHOLE_BYTES = 2**20
"""Up to this size a plain answer is read whole, so that one that breaks off is a refusal and no half answer."""
PASSED_ON = ("content-type", "cache-control", "retry-after", "x-model-id")
NOT_READY = ("not_served", "model_not_found")
"""Codes of an agent that does not have the model yet."""


class _NotReady(Exception):  # noqa: N818 - a state
    """The service does not answer now; the text says why."""


@dataclass(frozen=True)
class Question:
    """One request, once its model is known."""

    body: Body
    name: str
    path: str


class Proxy:
    """What the chats of one server share."""

    def __init__(self, backend: Backend, settings: Settings, catalog: Catalog, service_key: str | None = None) -> None:
        self._backend, self._settings, self._catalog, self._key = backend, settings, catalog, service_key
        self._bodies = Bodies()

    async def receive(self, request: Request) -> Response:
        """Read a request; returns what answers it, raises ApiError."""
        body = Body(self._bodies)
        try:
            length = request.headers.get("content-length", "0")
            encoding = request.headers.get("content-encoding")
            await body.read(request.stream(), encoding=encoding, length=int(length) if length.isdigit() else 0)
            name = (await body.parse()).get("model")
            if not isinstance(name, str) or not name:
                text = "Missing required parameter: 'model', the name of a base or of a fine-tuned model."
                raise ApiError(400, text, code="missing_required_parameter", param="model")
            await self._catalog.find(name)
        except BaseException as error:
            body.release()
            raise _as_api_error(error) from None
        return _Answer(self, Question(body, name, request.url.path))

    async def ask(self, question: Question) -> Completion:
        """Return an answer whose head is there; waits for a model that is being loaded, raises ApiError."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + self._settings.wait_seconds, FIRST_PAUSE_SECONDS
        while True:
            model = await self._catalog.find(question.name)
            try:
                return await self._post(model, question)
            except _NotReady as why:
                is_worth_it = model.is_coming or (model.service is not None and not model.service.trouble)
                if not is_worth_it or loop.time() + pause > until:
                    raise self._refusal(model, str(why)) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _post(self, model: Named, question: Question) -> Completion:
        """Send it; raises _NotReady, and ApiError for what another try would not help."""
        service = model.service
        if service is None:
            raise _NotReady(model.missing)
        url = self._backend.url(service)
        if url is None:
            raise _NotReady("it has no address yet")
        body = question.body
        if model.served_as != question.name:
            body = Body(Bodies(), bytearray(body.data))
            body.name_model(model.served_as)
        try:
            answer = await Completion.post(
                url,
                question.path,
                body.data,
                idle_seconds=IDLE_SECONDS,
                total_seconds=TOTAL_SECONDS,
                headers=self._headers(service),
            )
        except NotConnected as error:
            raise _NotReady(f"nobody answers at its address ({error})") from None
        except BrokeOff as error:
            raise _NotReady(f"the connection broke before an answer: {error}") from None
        except TimeoutError:
            text = f"InferenceService {service.name} has not answered in time."
            raise ApiError(504, text, code="timeout") from None
        try:
            await _check(answer, service)
        except BaseException:
            answer.close()
            raise
        return answer

    def _refusal(self, model: Named, why: str) -> ApiError:
        """Build the answer to a chat with a model that does not answer yet."""
        text, service = f"The model {model.name!r} does not answer now: {why}", model.service
        if service is not None and not service.is_ready:
            text = f"{text}. InferenceService {service.name} is not ready: {condition_of(service)}"
        is_final = not model.is_coming if service is None else self._backend.is_hopeless(service)
        wait = retry_after(RETRY_AFTER_SECONDS) | (NEVER_AGAIN if is_final else {})
        return ApiError(503, text.rstrip(".") + ".", code="model_not_ready", param="model", headers=wait)

    def _headers(self, service: InferenceServiceView) -> Mapping[str, str]:
        """Return the key that a service asks for, where it is the one that this server has."""
        asked, ours = service.spec.api_key_secret, self._settings.api_key_secret
        if asked is None:
            return {}
        if ours is None or self._key is None or (asked.name, asked.key) != (ours.name, ours.key):
            has = (
                f"that of Secret {ours.name}, key {ours.key}" if ours is not None and self._key is not None else "none"
            )
            text = (
                f"InferenceService {service.name} asks for the key in Secret {asked.name}, key {asked.key}, and this "
                f"server has {has}: set apiKeySecret of its chart to the same."
            )
            raise ApiError(500, text, code="server_misconfigured", headers=NEVER_AGAIN)
        return {"Authorization": f"Bearer {self._key}"}


async def _check(answer: Completion, service: InferenceServiceView) -> None:
    """Read an answer that is no success; raises _NotReady, and ApiError in the service's own words."""
    if answer.status < 400:
        return
    try:
        content = await answer.read()
    except (BrokeOff, TimeoutError):
        content = b""
    error = _error_of(content)
    code = error.get("code")
    message = str(error.get("message") or "") or error_text(content) or f"HTTP status {answer.status}"
    if answer.status in (404, 503) and code in NOT_READY:
        raise _NotReady(message)
    if answer.status in (401, 403):
        text = f"InferenceService {service.name} refuses this server's key: {message}"
        raise ApiError(500, text, code="server_misconfigured", headers=NEVER_AGAIN)
    if not error:
        message = f"InferenceService {service.name} has answered HTTP status {answer.status}: {message}"
    headers = {name: answer.headers[name] for name in ("retry-after",) if name in answer.headers}
    raise ApiError(
        answer.status,
        message,
        code=str(code) if code is not None else None,
        param=str(error["param"]) if error.get("param") is not None else None,
        headers=headers,
    )


def _error_of(content: bytes) -> dict[str, Any]:
    """Return the error object of an answer in OpenAI's form; empty where it has another one."""
    try:
        error = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def _as_api_error(error: BaseException) -> BaseException:
    match error:
        case Refused():
            headers = retry_after(2) if error.status == 503 else {}
            return ApiError(error.status, str(error), code=error.code, param=error.param, headers=headers)
        case ClientDisconnect():  # nobody reads the answer
            return ApiError(400, "The connection ended before the request did.", code="invalid_request_error")
    return error


# --- the answer -------------------------------------------------------------------------------------------------------


class _Answer(Response):
    """Asks the service while it is sent, and ends that question when the client goes away."""

    def __init__(self, proxy: Proxy, question: Question) -> None:
        super().__init__()
        self._proxy, self._question = proxy, question

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._serve(send))
        leaving = asyncio.ensure_future(_until_left(receive))
        try:
            await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, leaving):
                task.cancel()
            await asyncio.gather(work, leaving, return_exceptions=True)
            self._question.body.release()

    async def _serve(self, send: Send) -> None:
        answer = await self._proxy.ask(self._question)
        try:
            self._question.body.release()
            kind, size = answer.headers.get("content-type", ""), answer.headers.get("content-length", "")
            if kind.startswith("text/event-stream"):
                await _send_head(send, answer)
                await _pass_events(send, answer)
            elif size.isdigit() and int(size) <= WHOLE_BYTES:
                await _send_whole(send, answer)
            else:
                await _send_head(send, answer, *([(b"content-length", size.encode())] if size.isdigit() else []))
                await _pass_body(send, answer)
        finally:
            answer.close()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_head(send: Send, answer: Completion, *more: tuple[bytes, bytes]) -> None:
    headers = [(name.encode(), answer.headers[name].encode("latin-1")) for name in PASSED_ON if name in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": [*headers, *more]})


async def _send_piece(send: Send, data: bytes, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": not is_last})


async def _send_whole(send: Send, answer: Completion) -> None:
    try:
        content = await answer.read()
    except (BrokeOff, TimeoutError) as error:
        raise ApiError(503, f"The answer broke off: {_why(error)}.", code="answer_broke_off") from None
    await _send_head(send, answer, (b"content-length", str(len(content)).encode()))
    await _send_piece(send, content, is_last=True)


async def _pass_events(send: Send, answer: Completion) -> None:
    """Pass on whole events: half of one would spoil the event that says that the service broke off."""
    pieces = _Pieces(answer)
    rest = b""
    try:
        async for data in pieces:
            whole, end, rest = (rest + data).rpartition(EVENT_END)
            if end:
                await _send_piece(send, whole + end)
    except (BrokeOff, TimeoutError) as error:  # the head is out: an event says it, and no [DONE] follows
        said = ApiError(503, f"The answer broke off: {_why(error)}.", code="answer_broke_off").body()
        rest = DATA + json.dumps(said).encode() + EVENT_END
    finally:
        pieces.close()
    await _send_piece(send, rest, is_last=True)


async def _pass_body(send: Send, answer: Completion) -> None:
    """Pass on what is too large to hold. One that breaks off has no end, and so uvicorn ends the connection."""
    pieces = _Pieces(answer)
    try:
        async for data in pieces:
            await _send_piece(send, data)
    except (BrokeOff, TimeoutError):
        return
    finally:
        pieces.close()
    await _send_piece(send, b"", is_last=True)


def _why(error: BaseException) -> str:
    return "the service took too long" if isinstance(error, TimeoutError) else str(error)


class _Pieces:
    """An answer's pieces, those that came meanwhile in one; what the client has not taken is bounded.

    Iterating raises BrokeOff or TimeoutError behind the last piece, where the answer has no end.
    """

    def __init__(self, answer: Completion) -> None:
        self._held: list[bytes] = []
        self._size = 0
        self._news = asyncio.Event()
        self._passing = asyncio.ensure_future(answer.pass_on(self._put, self._is_full))
        self._passing.add_done_callback(lambda _: self._news.set())

    def _put(self, piece: bytes) -> None:
        self._held.append(piece)
        self._size += len(piece)
        self._news.set()

    def _is_full(self) -> bool:
        return self._size > HELD_BYTES

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> bytes:
        while not self._held:
            if self._passing.done():
                self._passing.result()
                raise StopAsyncIteration
            await self._news.wait()
            self._news.clear()
        data = b"".join(self._held)
        self._held.clear()
        self._size = 0
        return data

    def close(self) -> None:
        """Stop."""
        self._passing.cancel()
