"""Matplotlib figures of training runs and of a model's predictions. They need matplotlib (extra: plots)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.errors import UserError, count_of
from minivit.explorer.measures import calibration, confusion, curves, update_ratios, worst_pairs
from minivit.tracing.figures import COLOURS, in_words, new_figure, plain, shown, whole_ticks
from minivit.tracing.measures import part_of
from minivit.train.curves import loss_name
from minivit.train.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CLASSES = 20  # in the figure of a confusion matrix
_WITH_COUNTS = 12
_PAIRS, _PER_PAIR = 5, 5


def plot_confusion(
    logits: Array, labels: Array, class_names: Sequence[str] = (), pixels: Array | None = None
) -> Figure:
    """Return the figure of `confusion`, with images of the pairs of classes that are confused most often.

    Of more than 20 classes, those with the most mistakes are shown.

    Parameters
    ----------
    logits, labels : Array
        (n, C) and (n,).
    class_names : sequence of str
        C names; numbers by default.
    pixels : Array, optional
        (n, height, width, channels): the images, uint8, of which some are shown.
    """
    counts = confusion(logits, labels)
    C = len(counts)
    names = [_short(name) for name in class_names] or [str(label) for label in range(C)]
    if len(names) != C:
        raise UserError(f"there are {len(names)} class names and {C} classes")
    if pixels is not None and len(pixels) != len(labels):
        raise UserError(f"pixels has {count_of(len(pixels), 'image')}, and labels {len(labels)}")
    wrong = counts - np.diag(np.diag(counts))
    mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:_MOST_CLASSES])
    pairs = worst_pairs(counts, _PAIRS)
    with_images = bool(pairs) and pixels is not None
    figure = new_figure(10.4 if with_images else 5.6, 5.2)
    left: Any = figure
    right: Any = None
    if with_images:
        halves: Any = figure.subfigures(1, 2, width_ratios=(1.1, 1.0))
        left, right = halves
    axes = left.subplots()
    part = counts[np.ix_(chosen, chosen)]
    share = part / np.maximum(counts.sum(axis=1)[chosen, None], 1)
    image = axes.imshow(share, cmap="viridis", vmin=0, vmax=1)
    for side, set_ticks in (("x", axes.set_xticks), ("y", axes.set_yticks)):
        shown_names = [names[label] for label in chosen]
        vertical = side == "x" and max(map(len, shown_names)) > 2
        set_ticks(range(len(chosen)), shown_names, fontsize=8, rotation=90 if vertical else 0)
    if len(chosen) <= _WITH_COUNTS:
        for (i, j), count in np.ndenumerate(part):
            if count:
                colour = "black" if share[i, j] > 0.6 else "white"
                axes.text(j, i, str(count), ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    few = f"\nthe {len(chosen)} classes with the most mistakes" if len(chosen) < C else ""
    accuracy = f"{100 * np.trace(counts) / counts.sum():.1f} % of {count_of(int(counts.sum()), 'image')} are right"
    axes.set_title(accuracy + few, fontsize=9)
    left.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if right is not None and pixels is not None:
        _draw_pairs(right, pairs, names, to_host(logits), to_host(labels), pixels)
    return figure


def _draw_pairs(
    figure: Any, pairs: Sequence[Any], names: Sequence[str], logits: Array, labels: Array, pixels: Any
) -> None:
    """Draw a row of images for each pair, those whose wrong class leads most clearly first."""
    predicted = logits.argmax(axis=1)
    rows = figure.subplots(_PAIRS, 1, squeeze=False)[:, 0]
    figure.suptitle("the pairs confused most often", fontsize=9)
    for axes in rows:
        axes.set_axis_off()
    height, width = pixels.shape[1:3]
    gap = max(1, width // 12)
    for axes, pair in zip(rows, pairs, strict=False):
        found = np.flatnonzero((labels == pair.label) & (predicted == pair.taken_for))
        lead = logits[found, pair.taken_for] - logits[found, pair.label]
        text = f"{names[pair.label]} taken for {names[pair.taken_for]}, {count_of(pair.times, 'time')}"
        axes.set_title(text, fontsize=8, loc="left", pad=2)
        for i, image in enumerate(pixels[found[np.argsort(-lead, kind="stable")[:_PER_PAIR]]]):
            left = i * (width + gap)
            axes.imshow(shown(image), cmap="gray", vmin=0, vmax=1, extent=(left, left + width, height, 0))
        axes.set_xlim(0, _PER_PAIR * (width + gap))
        axes.set_anchor("W")


def plot_calibration(logits: Array, labels: Array, bins: int = 15) -> Figure:
    """Return the reliability diagram of `calibration`: accuracy by confidence, and the number of images."""
    found = calibration(logits, labels, bins)
    figure = new_figure(4.6, 4.8)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / bins
    middle = found.edges[:-1] + width / 2
    full = found.images > 0
    above.bar(middle[full], found.accuracy[full], width, color=COLOURS[0], edgecolor="white", label="accuracy")
    above.plot(found.confidence[full], found.confidence[full], "_", ms=9, mew=2, color=COLOURS[1], label="confidence")
    above.plot([0, 1], [0, 1], "--", lw=1, color="#555555", label="perfect calibration")
    above.set_ylim(0, 1.02)
    above.set_xlim(0, 1)
    above.set_ylabel("share of the images that are right")
    above.set_title(f"expected calibration error {100 * found.error:.2g} %", fontsize=10)
    plain(above)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    plain(below).bar(middle, found.images, width, color=COLOURS[5], edgecolor="white")
    below.set_ylabel("images")
    below.set_xlabel("confidence: the largest probability")
    return figure


def plot_update_ratios(run: RunFolder | Iterable[tuple[int, Mapping[str, Array]]]) -> Figure:
    """Return the figure of `update_ratios`: the median of the parameters of each block, over the steps.

    Parameters that begin at zero, such as biases, are left out of it where a block has others. A block whose weights
    do not change is not drawn.
    """
    found = update_ratios(run)
    parts = [part_of(name) for name in found.names]
    order = list(dict.fromkeys(parts))
    blocks = [part for part in order if part.startswith("blocks.")]
    figure = new_figure(7.0, 3.8)
    axes = plain(figure.subplots())
    import matplotlib

    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(1, len(blocks))))
    marks = iter("os^vDPX*")
    marker = "." if len(found.steps) < 20 else ""
    for part in order:
        columns = found.ratios[:, [i for i, each in enumerate(parts) if each == part]]
        steady = ~np.isnan(columns).any(axis=0)
        columns = columns[:, steady] if steady.any() else columns
        if not np.nansum(columns):
            continue
        values = np.median(columns, axis=1)
        if part in blocks:
            axes.plot(found.steps[1:], values, color=colours[blocks.index(part)], marker=marker, label=part)
        else:
            axes.plot(found.steps[1:], values, "--", color="#777777", lw=1, marker=next(marks, "."), ms=4, label=part)
    axes.axhline(1e-3, ls=":", lw=1, color="black")
    axes.annotate("1e-3", (1.0, 1e-3), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("update / weight, per step")
    axes.set_title("change of the weights from one kept step to the next", fontsize=10)
    figure.legend(frameon=False, fontsize=7, loc="outside right upper")
    return figure


def plot_curves(runs: Sequence[RunFolder]) -> Figure:
    """Return the figure of `curves`: loss and accuracy of several runs by epoch."""
    if not runs:
        raise UserError("there are no runs whose curves can be drawn")
    found = curves(runs)
    figure = new_figure(9.0, 3.8 + 0.15 * len(runs))
    lines: dict[str, Any] = {}
    trained = ["train_accuracy" in values for values in found.values()]  # with labels
    loss = loss_name(any(trained)) if len(set(trained)) == 1 else "loss"
    quantities = [("loss", 1.0, loss), ("accuracy", 100.0, "accuracy (%)")][: 1 + any(trained)]
    panels = np.ravel(figure.subplots(1, len(quantities)))
    for axes, (quantity, scale, label) in zip(panels, quantities, strict=True):
        for i, (name, values) in enumerate(found.items()):
            marker = "." if len(values["epoch"]) < 20 else ""
            for part, style in (("train", "--"), ("val", "-")):
                if f"{part}_{quantity}" in values:
                    text = f"{in_words(name)}, {'training' if part == 'train' else 'validation'}"
                    (line,) = axes.plot(
                        values["epoch"], scale * values[f"{part}_{quantity}"], style, color=COLOURS[i % len(COLOURS)],
                        marker=marker, lw=1.0 if part == "train" else 1.6,
                    )  # fmt: skip
                    lines.setdefault(text, line)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        whole_ticks(plain(axes).xaxis)
    figure.legend(lines.values(), lines.keys(), frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    return figure


def _short(name: str) -> str:
    return in_words(name if len(name) <= 16 else f"{name[:8]}…{name[-7:]}")
