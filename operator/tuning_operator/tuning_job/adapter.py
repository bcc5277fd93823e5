"""The start adapter of a TuningJob: noted while its TuningJob is there, and waited for after the data check."""

from __future__ import annotations

from llm_tuning.api.conditions import ConditionType, Phase, Reason
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.stage import Stage

FIELD = "spec.model.adapter.tuningJob"


class NoteAdapter(Stage):
    """Refuse what can never succeed, and record a start adapter before its TuningJob may be deleted."""

    def applies(self, observed: Observed) -> bool:
        return observed.adapter is not None

    def run(self, chain: Chain) -> bool:
        job = chain.observed.adapter
        if job is None or chain.start_model_id is not None:
            return True
        if job.name == chain.observed.name:
            message = f"{FIELD}: {job.name} is this TuningJob itself; name another one"
            chain.draft.fail(Trouble(Reason.INVALID_INPUT, message))
            return False
        if job.succeeded and job.model_id:
            chain.note_start(job.model_id)
        return True


class AwaitAdapter(Stage):
    """Wait until the start adapter is known."""

    def applies(self, observed: Observed) -> bool:
        return observed.adapter is not None

    def run(self, chain: Chain) -> bool:
        job, name = chain.observed.adapter, chain.observed.name
        if job is None or chain.start_model_id is not None:
            return True
        if job.finished:
            message = f"{FIELD}: TuningJob {job.name} has failed, there is no adapter to start from; see why it failed"
            chain.draft.fail(Trouble(Reason.ADAPTER_JOB_FAILED, message))
            return False
        reason, message = Reason.WAITING_FOR_ADAPTER, f"waiting for the adapter of TuningJob {job.name}"
        if not job.exists:
            reason = Reason.ADAPTER_JOB_NOT_FOUND
            message = f"{FIELD}: there is no TuningJob {job.name} in this namespace; waiting until one is applied"
        chain.draft.say(Phase.WAITING, reason, message, stage=ConditionType.TRAINED)
        if name in job.chain:
            circle = " -> ".join((name, *job.chain[: job.chain.index(name) + 1]))
            chain.draft.stall(
                Reason.INVALID_INPUT,
                f"{FIELD}: {circle}: each waits for the adapter of the next; delete one and apply it with another "
                "spec.model.adapter",
            )
        return False
