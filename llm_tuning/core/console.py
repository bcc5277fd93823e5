"""What a person sees: our own lines on standard error, none of the libraries' banners and progress bars."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from llm_tuning.core.text import printable

DEBUG_VARIABLE = "LLM_TUNING_DEBUG"
"""Set to 1 for the worker processes of a run with --debug."""


def set_up_logging(*, debug: bool = False) -> None:
    """Send this project's log lines to standard error, as they are: results alone go to standard output."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logger = logging.getLogger("llm_tuning")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


class _Printable(logging.Formatter):
    """A file's name may hold escape sequences, and a log line is read on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_ours: set[str] = set()
"""Variables that this module has set, since nobody had."""


def forced_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set for the libraries alone: the user has not forbidden to fetch."""
    return "HF_HUB_OFFLINE" in _ours


def quiet_libraries() -> None:
    """Keep the training libraries' warnings and bars off the terminal; they fetch nothing (`sources` does)."""
    if "HF_HUB_OFFLINE" not in os.environ:
        _ours.add("HF_HUB_OFFLINE")
        os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it misses a package of a hub
