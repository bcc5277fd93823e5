"""Asks a vLLM server for what a proof needs: its models, per-token log-probabilities, rendered conversations.

The server's error texts are shown, never searched: whether it lacks prompt log-probabilities or cannot take the tokens
is found by asking again without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from llm_tuning.data.calls import for_request
from llm_tuning.engines.protocol import ServedModel, TokensRefused, Unprovable
from llm_tuning.engines.vllm.stream import error_text
from llm_tuning.errors import InputError, Problem, TryAgain

SERVER_FAILED, SERVER_SILENT, SERVER_UNREACHABLE = "ServerFailed", "ServerSilent", "ServerUnreachable"
"""Reasons of TryAgain."""
REFUSED = (400, 404, 405, 422, 501)
"""Statuses of a server that does not support a request, as opposed to being broken or busy."""


class VllmProbe:
    """A client of a vLLM (OpenAI-compatible) server, as `Probe` has it.

    Its methods raise TryAgain when it does not answer or fails, InputError when it wants an API key or is none.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 300,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = server_root(url)
        host = urlsplit(self.url).hostname or ""
        self._http = httpx.Client(
            base_url=self.url,
            transport=transport,
            timeout=httpx.Timeout(timeout_seconds, connect=10),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            trust_env=host
            not in ("127.0.0.1", "::1", "localhost"),  # a proxy never leads to this machine's own loopback
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[ServedModel]:
        """Return the models that the server serves; raises InputError where it is no vLLM server."""
        response = self._request("GET", "/v1/models")
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
            self._expect_ok(response)
        if response.status_code != httpx.codes.OK:
            raise InputError(
                Problem(
                    self.url, f"answers GET /v1/models with {response.status_code}", "give the address of a vLLM server"
                )
            )
        try:
            return [
                ServedModel(str(entry["id"]), entry.get("parent") or None, entry.get("max_model_len"))
                for entry in response.json()["data"]
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(
                Problem(self.url, "does not answer as a vLLM server does", "give the address of a vLLM server")
            ) from None

    def logprobs(self, model: str, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log p(token t | tokens before t) for t >= 1 of every prompt, under the model of that name.

        One prompt at a time: with LoRA on, vLLM maps prompt log-probabilities of several requests in one step wrongly,
        and its CPU build ends (vllm-project/vllm#16668). `launch_llm.sh` starts it so that this cannot happen.
        Raises Unprovable where the server gives none, TokensRefused where it cannot take the tokens.
        """
        return [self._logprobs(model, prompt) for prompt in prompts]

    def _logprobs(self, model: str, prompt: Sequence[int]) -> list[float]:
        # Temperature 1 and top_p 1: a generation_config.json of the base must not bend the distribution.
        body = {"model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 1.0, "top_p": 1.0}
        response = self._request("POST", "/v1/completions", body | {"prompt_logprobs": 0, "add_special_tokens": False})
        if response.status_code in REFUSED:
            plain = self._request("POST", "/v1/completions", body)
            if plain.status_code in REFUSED:
                raise TokensRefused(_message(plain))
            raise Unprovable(f"the server gives no prompt log-probabilities ({_message(response)})")
        self._expect_ok(response)
        try:
            entries = response.json()["choices"][0].get("prompt_logprobs")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise Unprovable("the server's completions are not in vLLM's form") from None
        if entries is None:
            raise Unprovable("the server answers without prompt log-probabilities")
        return _of_prompt(prompt, entries)

    def render(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        ask: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int] | None:
        """Return the token ids that the server makes of a whole conversation; [] where its template refuses it.

        None where the server has no /tokenize. With `ask` the generation prompt follows, else the conversation ends
        with the answer.
        """
        body: dict[str, Any] = {"model": model, "messages": for_request(messages)}
        body |= {"add_generation_prompt": ask, "add_special_tokens": False}
        if tools:
            body["tools"] = list(tools)
        response = self._request("POST", "/tokenize", body)
        if response.status_code in (400, 422):  # its text may quote the conversation: not shown
            return []
        return _tokens(response)

    def tokenise(self, model: str, text: str) -> list[int] | None:
        """Return the token ids of a text as it is, without special tokens around it; None without a /tokenize."""
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        return _tokens(self._request("POST", "/tokenize", body))

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        with self._reachable():
            response = self._http.request(method, path, json=body)
        if response.status_code in (401, 403) and path.startswith("/v1/"):
            raise InputError(
                Problem(self.url, "wants an API key", "put it into a variable and name that with --api_key_env")
            )
        return response

    def _expect_ok(self, response: httpx.Response) -> None:
        if response.status_code != httpx.codes.OK:
            text = f"{self.url} answers with {response.status_code}: {_message(response)}; see the server's log"
            raise TryAgain(SERVER_FAILED, text)

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise TryAgain(SERVER_SILENT, f"{self.url} does not answer in time; is it overloaded?") from None
        except httpx.TransportError as error:
            raise TryAgain(SERVER_UNREACHABLE, f"no server answers at {self.url} ({error}); start it first") from None


def server_root(url: str) -> str:
    """Return `url` without a trailing slash or `/v1`; raises InputError if it is not an http(s) address."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            Problem("--url", f"must be an http(s) address, got {url!r}", "for example http://127.0.0.1:8000")
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _of_prompt(prompt: Sequence[int], entries: Sequence[Mapping[str, Any] | None]) -> list[float]:
    """Read a prompt's log-probabilities: vLLM gives a mapping from token id to it for every token but the first."""
    try:
        values = [float((entries[t] or {})[str(prompt[t])]["logprob"]) for t in range(1, len(prompt))]
    except (IndexError, KeyError, TypeError, ValueError):
        raise Unprovable("the server's prompt log-probabilities are not those of the tokens sent") from None
    if any(value > 1e-3 for value in values):
        raise Unprovable("the server gives logits instead of log-probabilities; start it without --logprobs-mode")
    return values


def _tokens(response: httpx.Response) -> list[int] | None:
    """Read the answer of /tokenize; None where it is none."""
    if response.status_code != httpx.codes.OK:
        return None
    try:
        return [int(token) for token in response.json()["tokens"]]
    except (ValueError, KeyError, TypeError):
        return None


def _message(response: httpx.Response) -> str:
    """Return the status and the server's own words in short."""
    return f"{response.status_code}: {error_text(response.content, most=200)}"
