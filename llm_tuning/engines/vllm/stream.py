"""The form of vLLM's streams (server-sent events) and of its errors."""

from __future__ import annotations

import json

EVENT_END, DATA, USAGE = b"\n\n", b"data: ", b'"usage":{'
ERROR = b'data: {"error":'
"""A fault after the head; within a text these quotes would be escaped."""


def error_text(body: bytes, *, most: int = 400) -> str:
    """Return the message of an OpenAI-style error, or the beginning of what came instead; at most `most` characters."""
    try:
        value = json.loads(body)
        error = value.get("error", value)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        text = body[:most].decode(errors="replace")
    return " ".join(text.split())[:most]
