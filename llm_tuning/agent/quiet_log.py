"""A logger for aiohttp's server: no word of clients that leave, a line at most of malformed requests, of many a few.

Anybody in reach can send them, without a key, and pages of a chat close streams all day; aiohttp writes a traceback for
each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

EVERY_SECONDS = 10.0


class _Quiet(logging.Filter):
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock, self._next, self._left_out = clock, -EVERY_SECONDS, 0

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):
            return False
        if not isinstance(error, HttpProcessingError | RequestPayloadError):
            return True
        now = self._clock()
        if now < self._next:
            self._left_out += 1
            return False
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        record.msg = f"{record.getMessage()}: it is malformed, {type(error).__name__}{more}"
        record.args, record.exc_info, record.exc_text = (), None, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        self._next, self._left_out = now + EVERY_SECONDS, 0
        return True


def quiet_logger() -> logging.Logger:
    """Return the one logger; its filter is made once."""
    logger = logging.getLogger("llm_tuning.agent.http")
    if not logger.filters:
        logger.addFilter(_Quiet())
    return logger
