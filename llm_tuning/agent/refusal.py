"""What is answered in place of a completion, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

SHOWN_CHARACTERS = 128
"""Of a client's own words in an answer."""


class Refused(Exception):  # noqa: N818 - an answer
    """An answer that says why not; `param` is the field of the request that is at fault."""

    def __init__(self, status: int, message: str, code: str = "invalid_request_error", param: str | None = None):
        self.status, self.code, self.param = status, code, param
        super().__init__(message)

    def as_json(self) -> dict[str, Any]:
        return error_json(str(self), self.code, self.status, self.param)


def error_json(message: str, code: str, status: int, param: str | None = None) -> dict[str, Any]:
    """Build the body of an error in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def shown(text: str) -> str:
    """Quote a client's own words, not at any length."""
    return repr(text) if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]!r}... ({len(text):,} characters)"
