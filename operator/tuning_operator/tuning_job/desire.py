"""What a TuningJob wants next, the same for every cause; pure.

`desire` reads one observation and nothing else. A stage that the conditions record as done is not repeated; whatever
was lost between two reconciles (a write, an event, a child) is wanted again by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from llm_tuning.api.conditions import ConditionType, Phase
from llm_tuning.pod.roles import TRAIN
from tuning_operator.core.cache import JOBS, TUNING_JOBS
from tuning_operator.core.defaults import with_defaults
from tuning_operator.core.desired import Desired, ObjectRef
from tuning_operator.core.resource import dump_status
from tuning_operator.core.settings import Settings
from tuning_operator.pods.gpus import find_gpu_trouble
from tuning_operator.pods.observed import read_time
from tuning_operator.pods.trouble import Trouble
from tuning_operator.tuning_job.chain import Chain
from tuning_operator.tuning_job.nodes import find_name_trouble
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import is_left_open
from tuning_operator.tuning_job.stage import Stage
from tuning_operator.tuning_job.stages import STAGES
from tuning_operator.tuning_job.status import Draft, conditions_of


def desire(observed: Observed, settings: Settings, now: datetime, stages: Sequence[Stage] = STAGES) -> Desired:
    """Decide everything that is wanted of this TuningJob now."""
    if observed.is_deleting:
        return Desired()  # owner references clean up
    if observed.holds(ConditionType.FINISHED):
        return _desire_finished(observed, now, stages)
    if observed.spec is None:
        draft, desired = Draft(observed, now, stages), Desired()
        draft.refuse_spec()
        draft.record_in(desired)
        return desired
    spec = with_defaults(observed.spec, settings.defaults)
    has_begun = TRAIN in observed.children or observed.holds(ConditionType.TRAINED)
    trouble = find_gpu_trouble(spec.resources.gpus, settings.gpu_resource, spec.resources.nodes)
    trouble = trouble or find_name_trouble(observed.name, spec.resources.nodes)
    if trouble is not None and not has_begun and not spec.suspend:
        return _refuse(observed, trouble, now, stages)
    return Chain(observed, spec, settings, now, stages).run()


def _refuse(observed: Observed, trouble: Trouble, now: datetime, stages: Sequence[Stage]) -> Desired:
    """Say why nothing is begun; only other settings of the operator change that, and with them it starts again."""
    draft, desired = Draft(observed, now, stages), Desired()
    draft.say(Phase.PENDING, trouble.reason, trouble.message)
    draft.stall(trouble.reason, trouble.message)
    draft.record_in(desired)
    return desired


def _desire_finished(observed: Observed, now: datetime, stages: Sequence[Stage]) -> Desired:
    """Run nothing again, whatever happens to the Jobs; end the object once ttlSecondsAfterFinished is over."""
    desired = Desired()
    spec, done = observed.spec, observed.status.completion_time
    if spec is not None and spec.ttl_seconds_after_finished is not None and done is not None:
        seconds = (read_time(done) + timedelta(seconds=spec.ttl_seconds_after_finished) - now).total_seconds()
        if seconds <= 0:
            desired.delete.append(ObjectRef(TUNING_JOBS, observed.name, observed.uid))
            return desired
        desired.requeue(seconds)
    left = [child for child in observed.children.values() if is_left_open(child)]
    desired.delete += [ObjectRef(JOBS, child.name, child.uid) for child in left]
    if observed.status.observed_generation != observed.generation:
        conditions = conditions_of(observed, now, stages).as_list()
        noted = {"observed_generation": observed.generation, "conditions": conditions}
        desired.status = dump_status(observed.status.model_copy(update=noted))
    return desired
