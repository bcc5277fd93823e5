"""Read the body of a request within bounds that all clients share, so that no number of them can fill the memory.

A body stays the bytes that came. It is parsed once, to read a few fields of it, and the tree is dropped at once; the
engine gets the same bytes with another `model`. Python objects take up to 70 times the bytes they are written in, and
a parse cannot be interrupted: so the values in a body are counted before it is parsed, and large ones take turns.
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from llm_tuning.agent.refusal import Refused

MAX_BODY_BYTES = 8 * 2**20
MAX_HELD_BYTES = 64 * 2**20
"""Of all bodies at once, from their first byte until the engine has them."""
MAX_VALUES = 2**18
"""In one body: a prompt of so many tokens by their ids, or 50 ms of parsing and 20 MB of small objects."""
BODY_SECONDS = 30.0
"""For a body to come: 8 MiB at 2 MBit/s."""
LARGE_BYTES = 2**16
"""Up to this size a body is taken whatever others hold, and parsed at once."""
_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@dataclass
class Bodies:
    """What the bodies under way hold together."""

    held: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """For a large one to be parsed; the loop serves others in between."""


@dataclass
class Body:
    """One body. `release` it when it is not needed any more; twice is no fault."""

    bodies: Bodies
    data: bytearray = field(default_factory=bytearray)
    _held: int = 0

    async def read(self, pieces: AsyncIterable[bytes], *, encoding: str | None, length: int) -> None:
        """Take it in; raises Refused for one that is compressed, too large or too slow, and what `pieces` raises.

        `encoding` and `length` are what the request's headers say: None and 0 where they say nothing.
        """
        if (encoding or "identity").lower() != "identity":
            message = f"a compressed body ({str(encoding)[:32]!r}) is not taken: send the JSON as it is, without "
            raise Refused(415, f"{message}Content-Encoding", "unsupported_media_type")
        if length > MAX_BODY_BYTES:
            raise _too_large()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in pieces:
                    self._take(piece)
        except TimeoutError:
            message = f"the body did not come within {BODY_SECONDS:.0f} s"
            raise Refused(408, message, "timeout") from None

    def _take(self, piece: bytes) -> None:
        self.data += piece
        self._held += len(piece)
        self.bodies.held += len(piece)
        if len(self.data) > MAX_BODY_BYTES:
            raise _too_large()
        if self.bodies.held > MAX_HELD_BYTES and len(self.data) > LARGE_BYTES:
            raise Refused(503, "too many large requests at once; try again in a moment", "overloaded")

    async def parse(self) -> dict[str, Any]:
        """Read it as a JSON object; raises Refused."""
        if len(self.data) <= LARGE_BYTES:
            return self._parsed()
        async with self.bodies.turn:
            await asyncio.sleep(0)
            return self._parsed()

    def _parsed(self) -> dict[str, Any]:
        if _most_values(self.data) > MAX_VALUES and _values(self.data) > MAX_VALUES:
            raise Refused(400, f"the body has more than {MAX_VALUES:,} values: send fewer or shorter lists")
        if self.data.startswith(BOM_UTF8):
            del self.data[: len(BOM_UTF8)]
        try:
            with _no_collection():
                value = json.loads(self.data.decode())
        except RecursionError:
            raise Refused(
                400, "the body is nested too deeply: at most some 900 lists and objects in each other"
            ) from None
        except UnicodeDecodeError:
            raise Refused(400, "the body must be JSON in UTF-8") from None
        except ValueError:
            raise Refused(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body must be a JSON object")
        return value

    def name_model(self, model: str) -> None:
        """Have the engine see `model`. Of equal names in an object the last one counts, as Python's reader has it.

        Only for a body that has been parsed: its last brace ends the object.
        """
        self.data[self.data.rindex(b"}") :] = b',"model":' + json.dumps(model).encode() + b"}"

    def release(self) -> None:
        """Forget it."""
        self.bodies.held -= self._held
        self._held = 0
        self.data.clear()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for cycles while a tree grows: there are none, and it takes four fifths of a parse."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _too_large() -> Refused:
    return Refused(413, f"a request may have at most {MAX_BODY_BYTES // 2**20} MiB", "request_too_large")


def _most_values(data: bytearray) -> int:
    """Count the JSON values, or more: each has a comma or a bracket before it, and those in texts count, too."""
    return sum(data.count(mark) for mark in (b",", b"[", b"{")) - data.count(b"[]") - data.count(b"{}")


def _values(data: bytearray) -> int:
    """Count the JSON values, or more, by commas and brackets outside of texts: a prompt may be full of them."""
    texts = (data.count(b'"') - data.count(b'\\"')) // 2
    return texts if texts > MAX_VALUES else _most_values(bytearray(_TEXT.sub(b"", data)))
