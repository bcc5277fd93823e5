"""Draw the loss curve of a run from its metrics.jsonl, as the picture that lies beside the adapter.

The panels are the mode's. matplotlib is imported here only, and used by its objects: pyplot would keep figures and a
backend for the whole process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_tuning.modes import MODES
from llm_tuning.modes.mode import HELD_OUT_COLOR, LOSS_PANEL, OTHER_COLOR, TRAINING_COLOR, Line, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2000
"""Points drawn of one series; more cannot be seen and only make the file larger."""
SMOOTHED_FROM = 50
"""Steps from which a noisy series is drawn pale with its running mean over it."""


def draw_loss_curve(metrics: Iterable[Mapping[str, Any]], picture: Path, *, mode: str) -> bool:
    """Draw the lines of a metrics.jsonl into `picture` (PNG), in the panels of `mode`; False without a step to draw."""
    wanted = MODES[mode].panels if mode in MODES else (LOSS_PANEL,)
    names = {line.name for panel in (*wanted, LOSS_PANEL) for line in panel.lines}
    series = _series(metrics, names)
    panels = [panel for panel in wanted if any(series[line.name] for line in panel.lines)]
    if not panels and any(series[line.name] for line in LOSS_PANEL.lines):
        panels = [LOSS_PANEL]
    if not panels:
        return False
    _draw(panels, series, picture)
    return True


def _draw(panels: Sequence[Panel], series: dict[str, list[tuple[int, float]]], picture: Path) -> None:
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from PIL import Image

    figure = Figure(
        figsize=(6.4, 0.6 + 2.6 * len(panels)), dpi=100, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    )
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, axis in zip(panels, axes, strict=True):
        _draw_panel(axis, panel, series)
    axes[-1].set_xlabel("optimizer step")
    canvas.draw()
    # Few colours are enough for lines on white and take a third of the bytes.
    palette = Image.new("P", (1, 1))
    palette.putpalette(_shades())
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(picture, format="PNG", optimize=True)


def _shades() -> list[int]:
    """Build the palette: red, green and blue of 16 shades from white to black and to each colour of a line."""
    colors = [
        [int(color[at : at + 2], 16) for at in (1, 3, 5)] for color in (TRAINING_COLOR, HELD_OUT_COLOR, OTHER_COLOR)
    ]
    return [
        255 - (255 - channel) * shade // 15
        for color in ([0, 0, 0], *colors)
        for shade in range(16)
        for channel in color
    ]


def _draw_panel(axis: Axes, panel: Panel, series: dict[str, list[tuple[int, float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in panel.lines:
        points = series[line.name]
        if points:
            _draw_line(axis, line, points)
    axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
    axis.set_ylabel(panel.unit)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.grid(visible=True, color="#dddddd", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    if sum(bool(series[line.name]) for line in panel.lines) > 1:
        axis.legend(frameon=False)


def _draw_line(axis: Axes, line: Line, points: list[tuple[int, float]]) -> None:
    style: dict[str, Any] = {"color": line.color, "label": line.label, "linewidth": 1.6}
    if line.marked or len(points) == 1:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, zorder=3, **style)
    elif len(points) < SMOOTHED_FROM:
        axis.plot(*zip(*points, strict=True), **style)
    else:
        axis.plot(*zip(*_thinned(points), strict=True), color=line.color, alpha=0.25, linewidth=0.8)
        axis.plot(*zip(*_thinned(_running_mean(points)), strict=True), **style)


def _series(metrics: Iterable[Mapping[str, Any]], names: set[str]) -> dict[str, list[tuple[int, float]]]:
    """Collect step and value of every name; values that are not finite are gaps in a picture and left out."""
    series: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    for line in metrics:
        for name in names & line.keys():
            if math.isfinite(line[name]):
                series[name].append((line["step"], line[name]))
    return series


def _running_mean(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average over about a twentieth of the run around each step; over less near the ends, not at the very ends.

    Centred, since a mean over the past only would show a falling loss too high and the held-out loss below it.
    """
    sums = [0.0, *accumulate(value for _, value in points)]
    most = max(2, len(points) // 40)
    smoothed = []
    for at, (step, _) in enumerate(points):
        half = min(most, at, len(points) - 1 - at)
        if half < most // 2:  # a mean over hardly anything: the last noisy step would look like a turn
            continue
        smoothed.append((step, (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)))
    return smoothed


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Thin the points to at most MOST_POINTS, the last one always among them."""
    every = math.ceil(len(points) / MOST_POINTS)
    return points if every == 1 else points[::-1][::every][::-1]
