"""Figures of a run. They need matplotlib (extra: plots)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from minivit.files import atomic_write
from minivit.train.run_folder import RunFolder
from minivit.train.state import best_line

_COLOURS = {"train": "#3b6ea5", "val": "#d1603d"}
_NAMES = {"train": "training", "val": "validation"}


def draw_curves(run: RunFolder) -> str | None:
    """Draw the curves of a run into curves.png, and return its path; a figure that fails costs a warning.

    Warns
    -----
    UserWarning
        The figure could not be drawn or written. None is returned, as without matplotlib.
    """
    with only_a_figure("curves.png"):
        metrics = run.metrics()
        best = best_line(run.recipe, metrics, run.result())
        return save_curves(metrics, run.path / "curves.png", run.recipe.label_smoothing, best)
    return None


@contextmanager
def only_a_figure(name: str) -> Iterator[None]:
    """Turn an error in the block into a warning: matplotlib can fail in many ways, of which none is worth a run."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"{name} could not be drawn ({error}); the run itself is complete", stacklevel=4)


def save_curves(
    metrics: list[dict[str, Any]], path: Path, label_smoothing: float = 0.0, best: dict[str, Any] | None = None
) -> str | None:
    """Draw loss and accuracy by epoch, of training and validation, into a PNG file; pre-training has no accuracy.

    Parameters
    ----------
    metrics : list of dict
        The lines of metrics.jsonl, at least one.
    path : Path
        The file.
    label_smoothing : float
        That of the training loss, which the legend names.
    best : dict, optional
        The line of the best epoch, whose validation accuracy is marked.

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
    with_accuracy = "train_accuracy" in metrics[-1]
    loss, *others = np.ravel(figure.subplots(1, 1 + with_accuracy))
    smoothed = f" (label smoothing {label_smoothing:g})" if label_smoothing else ""
    _draw(loss, metrics, "loss", 1.0, smoothed)
    loss.set_ylabel(loss_name(with_accuracy))
    for accuracy in others:
        _draw(accuracy, metrics, "accuracy", 100.0)
        accuracy.set_ylabel("accuracy (%)")
        if best is not None and "val_accuracy" in best:
            percent = 100.0 * best["val_accuracy"]
            label = f"best: {percent:.1f} % in epoch {best['epoch']}"
            accuracy.plot([best["epoch"]], [percent], "o", color=_COLOURS["val"], label=label)
    for axes in (loss, *others):
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    atomic_write(path, lambda file: file.write(picture.getvalue()))
    return str(path)


def loss_name(of_labels: bool) -> str:
    """Return the name of the loss of a classifier, or of a masked model."""
    return "cross-entropy loss" if of_labels else "loss of the predicted patches"


def _draw(axes: Any, metrics: list[dict[str, Any]], quantity: str, scale: float, about_training: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    marker = "." if len(metrics) < 20 else ""  # a run of one epoch is a single point
    for part in ("train", "val"):
        if f"{part}_{quantity}" in metrics[-1]:
            values = [scale * line[f"{part}_{quantity}"] for line in metrics]
            epochs = [line["epoch"] for line in metrics]
            label = _NAMES[part] + (about_training if part == "train" else "")
            axes.plot(epochs, values, marker=marker, color=_COLOURS[part], label=label)
    axes.set_xlabel("epoch")
    axes.set_xlim(0.5, metrics[-1]["epoch"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
