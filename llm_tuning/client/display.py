"""What a notebook shows of an object: a small table, what stalls it, and the loss curve as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from llm_tuning.api.conditions import ConditionType
from llm_tuning.client.logs import LossPoint
from llm_tuning.client.objects import InferenceServiceView, TuningJobView
from llm_tuning.progress.bar import clock

WIDTH, HEIGHT, MARGIN = 420, 120, 34
MOST_POINTS = 500
"""More cannot be seen, and a notebook keeps them all in its file."""

Rows = list[tuple[str, str]]


def job_html(job: TuningJobView, losses: Sequence[LossPoint] = ()) -> str:
    """Build the HTML of a TuningJob with its loss curve."""
    rows: Rows = [
        ("phase", job.phase),
        ("mode", job.spec.mode),
        ("base", job.spec.model.path or job.spec.model.uri or ""),
    ]
    status = job.status
    if status is not None:
        progress = status.progress
        if progress is not None:
            of = f" of {progress.total_steps}" if progress.total_steps else ""
            rows.append(("progress", f"{progress.percent} %, step {progress.step}{of}"))
            if progress.loss is not None:
                rows.append(("loss", f"{progress.loss:.4g}"))
            if progress.remaining_seconds is not None and not job.is_finished:
                rows.append(("left", clock(progress.remaining_seconds)))
        if status.adapter_path:
            rows.append(("adapter", status.adapter_path))
        found = status.evaluation
        if found is not None and found.tuned_loss is not None and found.base_loss is not None:
            rows.append(("held out loss", f"{found.base_loss:.4g} (base) → {found.tuned_loss:.4g} (tuned)"))
    if job.is_finished and not job.has_succeeded and ConditionType.SUCCEEDED in job.conditions:
        why = job.conditions[ConditionType.SUCCEEDED]
        rows.append(("failed", f"{why.reason}: {why.message}"))
    elif job.trouble:
        rows.append(("stalled", job.trouble))
    return _card(f"TuningJob {job.name}", rows) + loss_svg(losses)


def service_html(service: InferenceServiceView) -> str:
    """Build the HTML of an InferenceService with its adapters."""
    rows: Rows = [("ready", "yes" if service.is_ready else "no"), ("models", ", ".join(service.models))]
    if service.status is not None:
        rows.append(("replicas", f"{service.status.ready_replicas} of {service.spec.replicas} answer"))
        if service.status.url:
            rows.append(("url", service.status.url))
        for adapter in service.status.adapters:
            name = adapter.model_id or f"of TuningJob {adapter.tuning_job}"
            rows.append((name, f"effective: {adapter.effective}, {adapter.reason}"))
    if not service.is_ready:
        rows.append(("why", str(service).partition("not Ready, ")[2]))
    return _card(f"InferenceService {service.name}", rows)


def _card(title: str, rows: Rows) -> str:
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(label)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
        for label, text in rows
    )
    return f"<table><caption style='text-align:left'><b>{escape(title)}</b></caption>{cells}</table>"


def loss_svg(losses: Sequence[LossPoint]) -> str:
    """Draw the curve as SVG, with its bounds written at the axes; empty with fewer than two points."""
    if len(losses) < 2:
        return ""
    points = losses[:: max(1, len(losses) // MOST_POINTS)]
    points = points if points[-1] == losses[-1] else [*points, losses[-1]]
    first, last = points[0].step, points[-1].step
    low, high = min(point.loss for point in points), max(point.loss for point in points)
    across = (WIDTH - 2 * MARGIN) / max(1, last - first)
    up = (HEIGHT - MARGIN) / ((high - low) or 1.0)
    line = " ".join(
        f"{MARGIN + (point.step - first) * across:.1f},{MARGIN / 2 + (high - point.loss) * up:.1f}" for point in points
    )
    texts = "".join(
        f"<text x='{x:.0f}' y='{y:.0f}' font-size='9' text-anchor='{anchor}'>{text}</text>"
        for x, y, anchor, text in (
            (MARGIN - 3, MARGIN / 2 + 3, "end", f"{high:.3g}"),
            (MARGIN - 3, HEIGHT - MARGIN / 2 + 3, "end", f"{low:.3g}"),
            (MARGIN, HEIGHT - 3, "start", f"step {first}"),
            (WIDTH - MARGIN, HEIGHT - 3, "end", f"step {last}"),
        )
    )
    return (
        f"<svg role='img' aria-label='training loss' width='{WIDTH}' height='{HEIGHT}' "
        f"style='background:#fff' xmlns='http://www.w3.org/2000/svg'>"
        f"<polyline fill='none' stroke='#3465a4' stroke-width='1.6' points='{line}'/>{texts}</svg>"
    )
