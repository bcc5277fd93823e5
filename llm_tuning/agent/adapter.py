"""One adapter on this pod's engine: a state, and what is reported of it.

    ABSENT  -- loaded -->  LOADED  -- judged -->  JUDGED       may answer, if the verdict allows it
      ^  ^                   |                      |
      |  +----- refused -----+                      |          it does not fit: checked again later
      +-------- lost -------------------------------+          the engine does not have it any more

In ABSENT and LOADED it is due for its next step at some time; what fails is due again later, with longer pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from llm_tuning.agent.contract import AdapterReport, Effective
from llm_tuning.agent.fit import Misfit
from llm_tuning.api.conditions import AdapterReason
from llm_tuning.proof.judge import Proof, Verdict

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
FIRST_LOOK_AGAIN_SECONDS, LAST_LOOK_AGAIN_SECONDS = 10.0, 600.0
SETTLED_ATTEMPTS = 3
"""After so many failures an adapter counts as failed, and the pod no longer waits for it. It is tried on, seldom."""
SLOW_SECONDS = 30.0
"""A step that takes longer counts as failed; a later result is taken all the same."""
WAIT_SECONDS = 1.0

VERDICTS: dict[Verdict, tuple[Effective, AdapterReason]] = {
    Verdict.EFFECTIVE: ("True", AdapterReason.EFFECTIVE),
    Verdict.NO_EFFECT: ("False", AdapterReason.NO_EFFECT),
    Verdict.DIFFERENT: ("False", AdapterReason.DIFFERENT),
    Verdict.TOO_SMALL_TO_TELL: ("Unknown", AdapterReason.TOO_SMALL_TO_TELL),
    Verdict.CANNOT_BE_PROVEN: ("Unknown", AdapterReason.CANNOT_BE_PROVEN),
}
MAY_ANSWER = (AdapterReason.EFFECTIVE, AdapterReason.TOO_SMALL_TO_TELL, AdapterReason.CANNOT_BE_PROVEN)


class State(Enum):
    """Where it is on its way."""

    ABSENT = auto()
    """The engine does not have it, as far as is known."""
    LOADED = auto()
    """The engine has it, from the files that lie there now."""
    JUDGED = auto()
    """A verdict was reached on the engine as it runs now."""


@dataclass
class Adapter:
    """One adapter; the methods are the arrows of the picture."""

    model_id: str
    state: State = State.ABSENT
    effective: Effective = "Unknown"
    reason: AdapterReason = AdapterReason.LOADING
    message: str = "it is about to be loaded"
    settled: bool = False
    """Judged, or failed with a reason: the pod does not wait for it."""
    attempts: int = 0
    due: float = 0.0

    @property
    def is_loaded(self) -> bool:
        return self.state is not State.ABSENT

    @property
    def is_judged(self) -> bool:
        return self.state is State.JUDGED

    @property
    def may_answer(self) -> bool:
        return self.is_judged and self.reason in MAY_ANSWER

    def report(self) -> AdapterReport:
        """Build this adapter's part of the report to the operator."""
        return AdapterReport(
            model_id=self.model_id,
            loaded=self.is_loaded,
            effective=self.effective,
            settled=self.settled,
            reason=self.reason,
            message=self.message,
        )

    def loaded(self) -> None:
        """Move to LOADED: the engine has loaded the adapter."""
        self.state, self.reason, self.message = State.LOADED, AdapterReason.PROVING, "loaded, and being proven"

    def judged(self, proof: Proof) -> None:
        """Move to JUDGED with the verdict of `proof`."""
        self.state, self.settled = State.JUDGED, True
        self.effective, self.reason = VERDICTS[proof.verdict]
        self.message = proof.message

    def lost(self, reason: AdapterReason, message: str) -> None:
        """Move to ABSENT, due at once: the engine does not have the adapter any more, and its proof is void."""
        self.state, self.settled = State.ABSENT, False
        self.effective, self.reason, self.message = "Unknown", reason, message
        self.attempts, self.due = 0, 0.0

    def refused(self, misfit: Misfit, now: float) -> None:
        """Move to ABSENT with the misfit; the adapter is checked again later, for its files may be put right."""
        self.state, self.settled = State.ABSENT, True
        self.effective, self.reason, self.message = "False", misfit.reason, misfit.message
        self._again(now, FIRST_LOOK_AGAIN_SECONDS, LAST_LOOK_AGAIN_SECONDS)

    def failed(self, reason: AdapterReason, message: str, now: float) -> None:
        """Note that this step did not succeed, and retry it with back-off; the state stays."""
        self.effective, self.reason, self.message = "Unknown", reason, message
        self._again(now, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
        self.settled = self.settled or self.attempts >= SETTLED_ATTEMPTS

    def waits(self, reason: AdapterReason, message: str, now: float, *, seconds: float) -> None:
        """Note that this step has taken `seconds` so far and is due again soon; the state stays."""
        slow = seconds >= SLOW_SECONDS
        if slow:
            reason = AdapterReason.LOAD_FAILED
            message += f" for {SLOW_SECONDS:.0f} s and more: its volume or the engine is slow, or does not answer"
        self.effective, self.reason, self.message = "Unknown", reason, message
        self.settled = self.settled or slow
        self.due = now + WAIT_SECONDS

    def _again(self, now: float, first: float, last: float) -> None:
        """Count an attempt and set when the next is due; the pause doubles with each from `first` to `last` seconds."""
        self.attempts += 1
        self.due = now + min(first * 2.0 ** min(self.attempts - 1, 32), last)
