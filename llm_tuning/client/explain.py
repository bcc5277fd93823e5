"""Why an object is where it is and what to do, in one paragraph: its conditions in the order that a person asks in."""

from __future__ import annotations

from datetime import UTC, datetime

from llm_tuning.api.conditions import ConditionType, Phase, Reason, ServiceConditionType
from llm_tuning.api.kube import Condition
from llm_tuning.client.objects import InferenceServiceView, TuningJobView, age_of
from llm_tuning.progress.bar import clock, fetched
from llm_tuning.progress.snapshot import Snapshot

UNSEEN_SECONDS = 10.0
"""An operator that runs reconciles a new object within a second or two."""


def explain_job(job: TuningJobView, now: datetime | None = None) -> str:
    """Explain a TuningJob in a paragraph."""
    now = now or datetime.now(UTC)
    if job.status is None or not job.conditions:
        return _unseen("TuningJob", job.name, job.namespace, job.metadata, now)
    if job.has_succeeded:
        return _succeeded(job)
    if job.is_finished:
        why = job.conditions.get(ConditionType.SUCCEEDED)
        said = f"{why.reason}: {_sentence(why.message)}" if why is not None else "it does not say why."
        return (
            f"{job.name} has failed{_ago(why, now)}: {said} It stays as it is, and nothing of it runs any more. Put "
            f"that right, delete it (kubectl delete tj {job.name} -n {job.namespace}) and submit it again, or under "
            f"another name; the log of its last pod: kubectl tuning logs {job.name} -n {job.namespace}."
        )
    parts = [f"{job.name} is {job.phase}{_progress(job)}."]
    stalled, doing = job.conditions.get(ConditionType.STALLED), job.conditions.get(ConditionType.RECONCILING)
    if job.trouble and stalled is not None:
        parts.append(f"It makes no progress{_ago(stalled, now)}: {stalled.reason}: {_sentence(stalled.message)}")
        parts.append("It continues by itself once that is put right; nothing has to be submitted again.")
    elif job.phase == Phase.SUSPENDED:
        resume = _RESUME.format(name=job.name, namespace=job.namespace)
        parts.append(f"Nothing of it runs, since its spec suspends it. Resume it: {resume}.")
    elif doing is not None:
        parts.append(f"{_begun(_sentence(doing.message or doing.reason))} That is so{_ago(doing, now) or ' now'}.")
        if job.phase in (Phase.FETCHING, Phase.TRAINING):
            parts.append(f"Nothing is wrong; watch it with kubectl tuning watch {job.name} -n {job.namespace}.")
    return " ".join([*parts, *_behind(job.status.observed_generation, job.metadata)])


_RESUME = 'kubectl patch tj {name} -n {namespace} --type merge -p \'{{"spec": {{"suspend": false}}}}\''


def explain_service(service: InferenceServiceView, now: datetime | None = None) -> str:
    """Explain an InferenceService in a paragraph."""
    now = now or datetime.now(UTC)
    status, ready = service.status, service.conditions.get(ServiceConditionType.READY)
    if status is None or ready is None:
        return _unseen("InferenceService", service.name, service.namespace, service.metadata, now)
    answering = f"{status.ready_replicas} of {service.spec.replicas} replicas answer"
    stalled = service.conditions.get(ServiceConditionType.STALLED)
    if service.is_ready:
        parts = [f"{service.name} is Ready{_ago(ready, now)}: {answering}, under {status.url}."]
    else:
        parts = [
            f"{service.name} is not Ready{_ago(ready, now)}, {answering}: {ready.reason}: {_sentence(ready.message)}"
        ]
        if service.trouble and stalled is not None and stalled.reason != ready.reason:
            parts.append(f"What is in the way: {stalled.reason}: {_sentence(stalled.message)}")
        if (fetch := service.snapshot()).bytes is not None:
            parts.append(f"Fetched by now: {_fetched(fetch)}.")
        is_under_way = ready.reason == Reason.FETCHING and not service.trouble
        parts.append(f"It gets ready by itself{'' if is_under_way else ' once that is put right'}.")
    for adapter in status.adapters:
        name = adapter.model_id or f"The adapter of TuningJob {adapter.tuning_job}"
        if adapter.effective != "True" and adapter.message and adapter.message not in " ".join(parts):
            parts.append(f"{name}: {adapter.reason}: {_sentence(adapter.message)}")
    return " ".join([*parts, *_behind(status.observed_generation, service.metadata)])


def _succeeded(job: TuningJobView) -> str:
    status, claim = job.status, job.spec.volume.claim_name
    assert status is not None
    parts = [f"{job.name} has succeeded: the adapter is in {status.adapter_path} on the claim {claim}"]
    found = status.evaluation
    if found is not None and found.base_loss is not None and found.tuned_loss is not None:
        parts.append(
            f", and on {found.held_out_rows} held-out rows its loss is {found.tuned_loss:.4g} where the base has "
            f"{found.base_loss:.4g}"
        )
    parts.append(f". Its report: kubectl tuning report {job.name} -n {job.namespace}.")
    served = job.conditions.get(ConditionType.SERVED)
    if served is not None:
        parts.append(f" As for serving it, {served.reason}: {_sentence(served.message)}")
    return "".join(parts)


def _progress(job: TuningJobView) -> str:
    now = job.snapshot()
    if now.bytes is not None:
        return f" ({_fetched(now)})"
    if not now.step:
        return ""
    parts = [f"step {now.step} of {now.total_steps}" if now.total_steps else f"step {now.step}"]
    if now.loss is not None:
        parts.append(f"loss {now.loss:.4g}")
    if now.remaining_seconds is not None:
        parts.append(f"about {clock(now.remaining_seconds)} left")
    return f" ({', '.join(parts)})"


def _fetched(now: Snapshot) -> str:
    left = f", about {clock(now.remaining_seconds)} left" if now.remaining_seconds is not None else ""
    return f"{fetched(now).replace('  ', ' at ')}{left}"


def _unseen(kind: str, name: str, namespace: str, metadata: dict[str, object], now: datetime) -> str:
    age = age_of(str(metadata.get("creationTimestamp") or ""), now)
    if age < UNSEEN_SECONDS:
        return f"{name} was created just now; the operator has not reconciled it yet. Ask again in a few seconds."
    return (
        f"{name} was created {_span(age)} ago, and no operator has reconciled this {kind} yet. Is the operator "
        f"installed and running, and is {namespace} among the namespaces that it watches (Helm value watchNamespaces)?"
    )


def _behind(seen: int | None, metadata: dict[str, object]) -> list[str]:
    generation = metadata.get("generation")
    if seen is None or not isinstance(generation, int) or seen >= generation:
        return []
    return ["The spec was changed since; the operator has not reconciled it yet."]


def _ago(condition: Condition | None, now: datetime) -> str:
    since = age_of(condition.last_transition_time, now) if condition is not None else 0.0
    return f", for {_span(since)}" if since else ""


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]
