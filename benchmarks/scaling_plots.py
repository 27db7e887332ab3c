"""The scaling curves as SVG and PNG: colours that colour-blind readers tell apart, marks and strokes for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling_tables import Point, curve, distinct

# Blue, vermilion and grey of Okabe and Ito's palette; the strokes and marks differ too.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#B34700", "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
)
ARITHMETIC: dict[str, Any] = {"color": "#777777", "linestyle": ":", "linewidth": 1.2}
LABEL_GAP = 12.0  # points between two labels
_FLAT = ("batch", "threads")


def plot_rates(points: Sequence[Point], axis: str, label: str, folder: Path) -> list[Path]:
    """Draw images/s along an axis, and what our rightmost rate makes of the others if arithmetic alone counts.

    Along batch and threads the arithmetic of an image stays the same, and rates stand on an axis that begins at zero.
    """
    return _draw(points, axis, label, "images/s", lambda p: p.best, folder / f"rate_by_{axis}", axis not in _FLAT)


def plot_memory(points: Sequence[Point], label: str, folder: Path) -> list[Path]:
    """Draw the peak memory of a process along the axis of batch sizes."""
    return _draw(
        points, "batch", label, "peak memory, MB", lambda p: p.peak_bytes / 1e6, folder / "memory_by_batch", True
    )


def _draw(
    points: Sequence[Point],
    axis: str,
    label: str,
    quantity: str,
    height: Callable[[Point], float],
    path: Path,
    grows: bool,
) -> list[Path]:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points = [point for point in points if point.axis == axis]
    kinds = distinct(point.kind for point in points)
    files = [path.with_suffix(suffix) for suffix in (".svg", ".png")]
    with rc_context({"svg.hashsalt": "minivit"}):  # the same points give the same file
        figure = Figure(figsize=(5.2 * len(kinds), 3.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for panel, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            panel.set_title(kind.capitalize(), loc="left", fontsize=11)
            panel.set_xlabel(label)
            panel.set_ylabel(quantity)
            _curves(panel, points, axis, kind, height)
            _axes(panel, sorted({point.value for point in points}), log_x=axis != "threads", log_y=grows)
        figure.draw_without_rendering()  # only now is it known where everything lies
        for panel in figure.axes:
            _separate(panel)
        for file in files:
            figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _curves(panel: Any, points: Sequence[Point], axis: str, kind: str, height: Callable[[Point], float]) -> None:
    sides = distinct(point.side for point in points)
    for side, style in zip(sides, STYLES, strict=False):
        if found := curve(points, axis, kind, side):
            panel.plot([p.value for p in found], [height(p) for p in found], linewidth=1.8, markersize=6, **style)
            _label(panel, side, found[-1].value, height(found[-1]), style["color"])
    ours = curve(points, axis, kind, sides[0])
    if axis not in _FLAT and ours:
        expected = [height(ours[-1]) * ours[-1].flops_an_image / point.flops_an_image for point in ours]
        panel.plot([point.value for point in ours], expected, zorder=1, **ARITHMETIC)
        # These curves fall, so that this corner is free; no end of the line is.
        panel.text(0.03, 0.05, "dotted: arithmetic alone", color=ARITHMETIC["color"], transform=panel.transAxes)


def _axes(panel: Any, values: Sequence[int], log_x: bool, log_y: bool) -> None:
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    if log_x:
        panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(values))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    if log_y:
        panel.set_yscale("log")
        low, high = panel.get_ylim()
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
        panel.yaxis.set_minor_locator(NullLocator())
    else:
        panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _label(panel: Any, text: str, x: float, y: float, color: str) -> None:
    panel.annotate(text, (x, y), xytext=(9, 0), textcoords="offset points", color=color, va="center")


def _separate(panel: Any) -> None:
    """Move the labels at the ends of the curves apart where they would lie on each other."""
    from matplotlib.text import Annotation

    points_a_pixel = 72 / panel.figure.dpi
    labels = [text for text in panel.texts if isinstance(text, Annotation)]
    ends = [(float(panel.transData.transform(label.xy)[1]) * points_a_pixel, label) for label in labels]
    lowest = float("-inf")
    for end, label in sorted(ends, key=lambda pair: pair[0]):
        lowest = max(lowest + LABEL_GAP, end)
        label.set_position((9, lowest - end))
