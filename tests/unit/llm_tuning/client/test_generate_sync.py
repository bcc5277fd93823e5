"""The synchronous client is the asynchronous one without `async`."""

from __future__ import annotations

import ast
from pathlib import Path

from llm_tuning.client import generate_sync, sync


def test_a_method_of_an_unknown_return_type_is_passed_on() -> None:
    [node] = ast.parse("async def ping(self, name: str, *, twice: bool = False, **more: int) -> Answer: 'Ping.'").body
    assert isinstance(node, ast.AsyncFunctionDef)
    made = generate_sync._method(node)
    assert "def ping(self, name: str, *, twice: bool=False, **more: int) -> Answer:" in made
    assert "return self._loop.run(self._client.ping(name, twice=twice, **more))" in made


def test_no_word_of_the_asynchronous_client_is_left() -> None:
    text = Path(sync.__file__).read_text()
    assert "async " not in text
    assert "await " not in text
