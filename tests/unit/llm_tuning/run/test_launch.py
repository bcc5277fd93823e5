"""Which of the ranks' ends becomes the result of the run."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from llm_tuning.errors import InputError, TryAgain
from llm_tuning.run.launch import AGENT_KILLS_AFTER_SECONDS, raise_cause
from llm_tuning.run.rank import RankFailure

LOST = {"message": "RuntimeError: Connection closed by peer"}
STOP = {"reason": "Stopped", "message": "stopped after step 5"}
INPUT = {"message": "bad", "problems": [{"where": "lora.targetModules", "rule": "match nothing", "fix": "q_proj"}]}


def failure(code: int, seconds: float = 0, **error: Any) -> RankFailure:
    return RankFailure(code, 1000 + seconds, error)


KILLED = failure(-signal.SIGKILL, 0.4)
ENDED_BY_AGENT = failure(-signal.SIGTERM, 0.9)
HUNG = failure(-signal.SIGKILL, AGENT_KILLS_AFTER_SECONDS)
CRASHED = failure(1, 0.2, message="ValueError: no")


@pytest.mark.parametrize(
    ("failures", "kind", "said"),
    [
        ({1: CRASHED, 0: failure(1, 0.5, **LOST)}, RuntimeError, "rank 1 of 2 failed with exit code 1: ValueError: no"),
        ({0: failure(1, 0.1, **LOST), 1: KILLED}, RuntimeError, "rank 1 of 2 was ended by SIGKILL; the kernel does"),
        ({0: ENDED_BY_AGENT, 1: KILLED}, RuntimeError, "rank 1 of 2 was ended by SIGKILL"),
        ({0: HUNG, 1: CRASHED}, RuntimeError, "rank 1 of 2 failed with exit code 1: ValueError: no"),
        ({0: failure(75), 1: CRASHED}, RuntimeError, "rank 1 of 2 failed with exit code 1: ValueError: no"),
        ({0: failure(75, 0.5, **STOP), 1: KILLED}, RuntimeError, "rank 1 of 2 was ended by SIGKILL"),
        ({1: failure(-signal.SIGSEGV)}, RuntimeError, "rank 1 of 2 was ended by SIGSEGV$"),
        ({1: failure(-63)}, RuntimeError, "rank 1 of 2 was ended by signal 63$"),
        ({0: failure(3)}, RuntimeError, "rank 0 of 2 failed with exit code 3: it left no message"),
        ({0: KILLED, 1: failure(64, 0.5, **INPUT)}, InputError, "lora.targetModules"),
        ({0: failure(75, reason="GPUUnavailable", message="no CUDA"), 1: KILLED}, TryAgain, "no CUDA"),
        ({0: failure(75, 0.1, **STOP), 1: failure(75)}, TryAgain, "stopped"),
        ({0: ENDED_BY_AGENT}, TryAgain, "stopped on request"),
    ],
)
def test_the_cause_is_named_and_not_what_it_led_to(
    failures: dict[int, RankFailure], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        raise_cause(failures, ranks=2, stopped=False)


@pytest.mark.parametrize(
    "failures",
    [
        {0: failure(75, 0.5, **STOP), 1: failure(75)},
        {0: failure(1, 0.1, **LOST), 1: failure(75, 0.5, **STOP)},
        {0: KILLED, 1: failure(75, 0.5, **STOP)},
    ],
)
def test_a_stop_that_was_asked_for_outranks_what_else_went_wrong(failures: dict[int, RankFailure]) -> None:
    with pytest.raises(TryAgain, match="stopped after step 5") as raised:
        raise_cause(failures, ranks=2, stopped=True)
    assert raised.value.reason == "Stopped"


def test_ranks_that_were_stopped_before_they_could_say_so_are_a_stop() -> None:
    with pytest.raises(TryAgain):
        raise_cause({0: ENDED_BY_AGENT, 1: ENDED_BY_AGENT}, ranks=2, stopped=True)


def test_a_stop_that_came_after_the_end_changes_nothing() -> None:
    raise_cause({}, ranks=2, stopped=True)
