"""A vLLM that runs on this pod's loopback: up or down, with some adapters loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from llm_tuning.engines.protocol import EngineDown, EngineRefused, EngineSilent
from llm_tuning.engines.vllm.probe import VllmProbe
from llm_tuning.engines.vllm.stream import error_text

LOOK_SECONDS = 5.0
"""For a question about its state: it is answered beside the requests, so a busy engine answers as well."""
LOAD_SECONDS = 50.0
"""For loading an adapter, whose files were read a moment ago; a load that hangs has its reason within a minute."""


@dataclass
class VllmEngine:
    """Calls to it, as `Engine` has them."""

    url: str
    session: aiohttp.ClientSession

    async def adapters(self) -> set[str]:
        await self._call("GET", "/health", seconds=LOOK_SECONDS)
        models = await self._call("GET", "/v1/models", seconds=LOOK_SECONDS)
        try:
            return {str(model["id"]) for model in json.loads(models)["data"] if model.get("parent")}
        except (ValueError, KeyError, TypeError) as error:
            raise EngineDown(f"it lists its models in an unknown form ({error})") from None

    async def load(self, name: str, path: str) -> None:
        body = {"lora_name": name, "lora_path": path}
        await self._call("POST", "/v1/load_lora_adapter", body, seconds=LOAD_SECONDS)

    async def unload(self, name: str) -> None:
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds=LOOK_SECONDS)

    async def touch(self, name: str) -> None:
        body = {"model": name, "prompt": [0], "max_tokens": 1}
        await self._call("POST", "/v1/completions", body, seconds=LOAD_SECONDS)

    async def metrics(self) -> bytes:
        return await self._call("GET", "/metrics", seconds=LOOK_SECONDS)

    def probe(self) -> VllmProbe:
        return VllmProbe(self.url)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seconds: float) -> bytes:
        try:
            timeout = aiohttp.ClientTimeout(total=seconds)
            async with self.session.request(method, self.url + path, json=body, timeout=timeout) as response:
                text = await response.read()
        except TimeoutError:  # an OSError as well, so it comes first
            raise EngineSilent(f"it does not answer within {seconds:.0f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise EngineDown(f"it does not answer ({type(error).__name__})") from None
        if response.status != 200 and method == "GET":
            raise EngineDown(f"it answers {path} with {response.status}")
        if response.status != 200:
            raise EngineRefused(f"{response.status}: {error_text(text)}")
        return text
