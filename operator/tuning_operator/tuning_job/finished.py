"""A TuningJob that has finished: nothing runs again, whatever happens to its Jobs; its time may come to go."""

from __future__ import annotations

from datetime import datetime, timedelta

from tuning_operator.core.desired import Desired, JobRef
from tuning_operator.pods.observed import read_time
from tuning_operator.tuning_job.observed import Observed
from tuning_operator.tuning_job.outcome import is_left_open
from tuning_operator.tuning_job.status import conditions_of, dump


def desire_finished(observed: Observed, now: datetime) -> Desired:
    """The end of the object once ttlSecondsAfterFinished is over, or only a newer generation taken note of."""
    desired = Desired()
    spec, done = observed.spec, observed.status.completion_time
    if spec is not None and spec.ttl_seconds_after_finished is not None and done is not None:
        seconds = (read_time(done) + timedelta(seconds=spec.ttl_seconds_after_finished) - now).total_seconds()
        if seconds <= 0:
            desired.delete_self = True
            return desired
        desired.look_again(seconds)
    left = [child for child in observed.children.values() if is_left_open(child)]
    desired.delete_jobs += [JobRef(child.name, child.uid) for child in left]
    if observed.status.observed_generation != observed.generation:
        noted = {"observed_generation": observed.generation, "conditions": conditions_of(observed, now).as_list()}
        desired.status = dump(observed.status.model_copy(update=noted))
    return desired
