"""From a subcommand to its exit code, with the result left as the termination message whatever happens."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Protocol, cast

from llm_tuning.core.console import set_up_logging
from llm_tuning.errors import EXIT_INPUT, EXIT_OK, EXIT_TRY_AGAIN, InputError, Problem, TryAgain
from llm_tuning.pod.contract import (
    TERMINATION_LOG,
    TERMINATION_LOG_VARIABLE,
    CheckResult,
    FetchResult,
    PodReason,
    PodResult,
    TrainResult,
    encode_result,
)
from llm_tuning.pod.credentials import adopt_credentials
from llm_tuning.pod.job import PodJob
from llm_tuning.pod.roles import ROLES
from llm_tuning.pod.secrets import ScrubbingFormatter, scrub
from llm_tuning.pod.wording import in_claim_words, message_of, reason_of

log = logging.getLogger(__name__)

EXIT_UNEXPECTED = 1


class _Role(Protocol):
    def run(self, job: PodJob | None) -> PodResult: ...


def run_role(role: str) -> int:
    """Run `fetch`, `check`, `train` or `report` and return its exit code. No error leaves it."""
    _set_up_logging()
    job: PodJob | None = None
    try:
        if role not in ROLES:
            raise InputError(Problem("", "the subcommand must be one of " + ", ".join(ROLES)))
        if ROLES[role].has_spec:
            adopt_credentials()
            job = PodJob.from_environment()
        result, code = cast(_Role, importlib.import_module(f"llm_tuning.pod.{role}")).run(job), EXIT_OK
    except InputError as error:
        result, code = _failed(role, job, reason_of(error, job), message_of(error, job)), EXIT_INPUT
    except TryAgain as error:
        result, code = _failed(role, job, error.reason, error.message), EXIT_TRY_AGAIN
    except Exception as error:
        log.exception("unexpected")
        message = f"{type(error).__name__}: {error}"
        result, code = _failed(role, job, PodReason.UNEXPECTED_ERROR, message), EXIT_UNEXPECTED
    _leave(result)
    return code


def _failed(role: str, job: PodJob | None, reason: str, message: str) -> PodResult:
    message = scrub(in_claim_words(message, job))
    kind = ROLES[role].result if role in ROLES else TrainResult
    if kind in (CheckResult, FetchResult):
        return kind(ok=False, reason=reason, message=message)
    model_id = job.input.model_id if job is not None else ""
    return TrainResult(ok=False, reason=reason, message=message, model_id=model_id)


def _leave(result: PodResult) -> None:
    log.info("%s: %s", result.reason, result.message)
    path = Path(os.environ.get(TERMINATION_LOG_VARIABLE, TERMINATION_LOG))
    try:
        path.write_text(encode_result(result), encoding="utf-8")
    except OSError as error:
        log.warning("the result cannot be written to %s: %s", path, error.strerror)


def _set_up_logging() -> None:
    set_up_logging()
    for handler in logging.getLogger("llm_tuning").handlers:
        handler.setFormatter(ScrubbingFormatter("%(message)s"))
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
