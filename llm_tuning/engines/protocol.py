"""What the agent, the launcher and the proof need of an engine, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class EngineDown(Exception):  # noqa: N818 - a state
    """It does not answer."""


class EngineSilent(EngineDown):
    """It takes the question and gives no answer in time: busy, or hanging."""


class EngineRefused(Exception):  # noqa: N818 - an answer
    """It answers with an error; the text is its own."""


class Unprovable(Exception):  # noqa: N818 - an outcome (the verdict `cannot_be_proven`), not a fault
    """An adapter cannot be judged; the text says what is missing. It becomes a verdict, never an exit code."""


class TokensRefused(Exception):  # noqa: N818 - an outcome (another base), not a fault
    """The engine's model cannot take the probes' token ids; the text is the engine's."""


@dataclass(frozen=True)
class ServedModel:
    """A name that an engine serves."""

    name: str
    parent: str | None
    """Name of the base for an adapter, None for the base itself."""
    max_model_len: int | None
    """Tokens of context, where the engine says."""


class Probe(Protocol):
    """Asks an engine for what a proof needs.

    Each method raises TryAgain where it does not answer, InputError where it wants an API key or is no such engine.
    """

    url: str

    def models(self) -> list[ServedModel]:
        """Return the models that the engine serves."""

    def logprobs(self, model: str, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log p(token t | tokens before t) for t >= 1 of every prompt; raises Unprovable and TokensRefused."""

    def render(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        ask: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int] | None:
        """Return the token ids of a whole conversation; [] where its template refuses it, None where it is unknown.

        With `ask` it is what the model is shown for the next answer: the generation prompt follows.
        """

    def tokenise(self, model: str, text: str) -> list[int] | None:
        """Return the token ids of a text as it is, without special tokens around it; None where that is unknown."""

    def close(self) -> None:
        """Close the connections."""


class Engine(Protocol):
    """One running engine; each call raises EngineDown, and those that change something EngineRefused."""

    url: str

    async def adapters(self) -> set[str]:
        """Return the names of the loaded adapters."""

    async def load(self, name: str, path: str) -> None:
        """Load the adapter in folder `path` under `name`."""

    async def unload(self, name: str) -> None:
        """Forget the adapter `name`."""

    async def touch(self, name: str) -> None:
        """Use the adapter `name` once, so that it is not the next one to be forgotten."""

    async def metrics(self) -> bytes:
        """Return the engine's own metrics in Prometheus' text form."""

    def probe(self) -> Probe:
        """Open a probe of this engine for a proof; close it afterwards."""
