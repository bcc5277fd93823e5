"""Log lines: what happened, then `key=value` pairs given as extra={"keys": {...}}."""

from __future__ import annotations

import logging
import sys


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        keys = getattr(record, "keys", None) or {}
        pairs = "".join(f" {name}={_shown(str(value))}" for name, value in keys.items())
        first, newline, rest = text.partition("\n")
        return f"{first}{pairs}{newline}{rest}"


def _shown(value: str) -> str:
    """Return the value as one word, quoted where it is none, so that no value makes a line of its own."""
    return value if value.isprintable() and len(value.split()) == 1 and " " not in value else repr(value)


def set_up_logging() -> None:
    """Log to standard error, from INFO on; libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tuning_operator").setLevel(logging.INFO)
