"""Figures of a run. They need matplotlib (extra: plots)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from minivit.files import atomic_write

_COLOURS = {"train": "#3b6ea5", "val": "#d1603d"}
_NAMES = {"train": "training", "val": "validation"}


def save_curves(metrics: list[dict[str, Any]], path: Path) -> str | None:
    """Draw loss and accuracy by epoch, of training and validation, into a PNG file.

    Parameters
    ----------
    metrics : list of dict
        The lines of metrics.jsonl, at least one.
    path : Path
        The file.

    Returns
    -------
    str or None
        The path, or None where matplotlib is not installed.

    Raises
    ------
    RunError
        The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9.0, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    _draw(loss, metrics, "loss", 1.0)
    loss.set_ylabel("cross-entropy loss")
    _draw(accuracy, metrics, "accuracy", 100.0)
    accuracy.set_ylabel("accuracy (%)")
    if "val_accuracy" in metrics[-1]:
        best = max(metrics, key=lambda line: (line["val_accuracy"], line["epoch"]))
        percent = 100.0 * best["val_accuracy"]
        label = f"best: {percent:.1f} % in epoch {best['epoch']}"
        accuracy.plot([best["epoch"]], [percent], "o", color=_COLOURS["val"], label=label)
    for axes in (loss, accuracy):
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    atomic_write(path, lambda file: file.write(picture.getvalue()))
    return str(path)


def _draw(axes: Any, metrics: list[dict[str, Any]], quantity: str, scale: float) -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "." if len(metrics) < 20 else ""  # a run of one epoch is a single point
    for part in ("train", "val"):
        if f"{part}_{quantity}" in metrics[-1]:
            values = [scale * line[f"{part}_{quantity}"] for line in metrics]
            epochs = [line["epoch"] for line in metrics]
            axes.plot(epochs, values, marker=marker, color=_COLOURS[part], label=_NAMES[part])
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, metrics[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
