"""Keep credentials out of a pod's log and result, which are read by more people than its Secret.

The credentials come from the Secret that the spec names into the environment (`credentials`), and libraries put them
into messages of theirs (a database driver its whole URI). So the values themselves are looked for.
"""

from __future__ import annotations

import logging
import os
import re

from llm_tuning.tracking.stores import redact

_NAMES = re.compile(r"PASS|TOKEN|SECRET|CREDENTIAL|_KEY|^KEY", re.IGNORECASE)
_NOT_SECRET = re.compile(r"^(KUBEFLOW_TRAINER_SERVER_|TOKENIZERS_)")
_SHORTEST = 4
"""A shorter value would blot out ordinary words."""


_gone: set[str] = set()
"""Values that were in the environment for a while."""


def remember_secrets() -> None:
    """Go on looking for the values of this moment after they have left the environment."""
    _gone.update(_values())


def scrub(text: str) -> str:
    """Remove the user and password of any URI and the values of this process's secret variables from `text`."""
    for value in _values():
        text = text.replace(value, "***")
    return redact(text)


def _values() -> list[str]:
    names = (name for name in os.environ if _NAMES.search(name) and not _NOT_SECRET.match(name))
    values = {os.environ[name].strip() for name in names} | _gone
    return sorted((value for value in values if len(value) >= _SHORTEST), key=len, reverse=True)


class ScrubbingFormatter(logging.Formatter):
    """Formats log lines, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))
