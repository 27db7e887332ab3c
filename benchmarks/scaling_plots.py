"""The scaling curves as SVG and PNG: colours that colour-blind readers tell apart, marks and strokes for all others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scaling import AXES, OURS, Point, curves

# Blue and vermilion of Okabe and Ito's palette, and grey; the strokes and marks differ too.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#B34700", "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
)
_ARITHMETIC: dict[str, Any] = {"color": "#777777", "linestyle": ":", "linewidth": 1.2, "zorder": 1}


def plot(points: Sequence[Point], axis: str, quantity: str, height: Callable[[Point], float], path: Path) -> None:
    """Draw a quantity along an axis, and our rightmost point scaled to the others by arithmetic alone.

    Along batch and threads the arithmetic of an image stays the same; rates stand on an axis that begins at zero there.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = curves([point for point in points if point.axis == axis], axis)
    grows = axis not in ("batch", "threads")
    with rc_context({"svg.hashsalt": "minivit"}):  # the same points give the same file
        figure = Figure(figsize=(5.2 * len(found), 3.5), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        for panel, (kind, systems) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
            panel.set_title(kind.capitalize(), loc="left", fontsize=11)
            panel.set_xlabel(AXES[axis].label)
            panel.set_ylabel(quantity)
            for (system, own), style in zip(systems.items(), _STYLES, strict=False):
                panel.plot([*own], [*map(height, own.values())], linewidth=1.8, markersize=6, label=system, **style)
            ours = systems[OURS]
            if grows and ours:
                last = [*ours.values()][-1]
                expected = [height(last) * last.flops_an_image / p.flops_an_image for p in ours.values()]
                panel.plot([*ours], expected, label="arithmetic alone", **_ARITHMETIC)
            _scales(panel, sorted({v for own in systems.values() for v in own}), axis, grows or "MB" in quantity)
            panel.legend(frameon=False)
        for suffix, metadata in ((".svg", {"Date": None}), (".png", None)):
            figure.savefig(path.with_suffix(suffix), metadata=metadata)


def _scales(panel: Any, values: Sequence[int], axis: str, log_y: bool) -> None:
    if axis != "threads":
        panel.set_xscale("log", base=2)
    panel.set_xticks(values, labels=[*map(str, values)], minor=False)
    panel.minorticks_off()
    if log_y:
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
    panel.grid(color="#DDDDDD", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
