"""How a pod of a TuningJob reports where it is."""

from __future__ import annotations

from tuning_operator.core.audience import audience_of
from tuning_operator.core.settings import Settings
from tuning_operator.pods import reporting
from tuning_operator.pods.job import PodParts
from tuning_operator.tuning_job.observed import Observed


def add_reporting(parts: PodParts, observed: Observed, settings: Settings) -> None:
    """Let the pod report for this TuningJob."""
    path = f"/v1/namespaces/{observed.namespace}/tuningjobs/{observed.name}/status"
    audience = audience_of(observed.namespace, observed.name, observed.uid)
    reporting.add_reporting(parts, settings, path=path, audience=audience)
