"""Matplotlib figures of a model, from the measures beside this file. They need matplotlib (extra: plots).

A figure is shown by a notebook, and written by `save_figure`. No window and no state of `matplotlib.pyplot` is used.
Colour-blind people can tell the colours apart: the map viridis, and lines in those of Okabe and Ito (2008).
"""

from __future__ import annotations

import functools
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minivit.arrays import Array, to_host
from minivit.errors import UserError, count_of, install, printable
from minivit.files import atomic_write
from minivit.nn.vit import ViT
from minivit.tracing.attention import attention_distance, attention_rollout, patch_distances
from minivit.tracing.measures import expect_vit, filter_components, gradient_flow, position_similarity
from minivit.tracing.trace import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
FORMATS = ("png", "svg")
_MOST_TILES = 14  # in a row of the figure of position similarities
_MOST_IMAGES = 8


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches.

    Raises
    ------
    UserError
        Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"figures need matplotlib; install it: {install('matplotlib')}") from error
    figure: Any = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure._repr_png_ = functools.partial(picture, figure, "png")  # what a notebook shows
    return figure


def picture(figure: Figure, form: str) -> bytes:
    """Return the content of a file of the figure, "png" or "svg"; the same figure gives the same bytes."""
    import matplotlib

    if form not in FORMATS:
        raise UserError(f"the format {form!r} is not known; expected {' or '.join(FORMATS)}")
    settings: Any = {"svg.hashsalt": "minivit", "svg.fonttype": "none"}
    with matplotlib.rc_context(settings), warnings.catch_warnings(), io.BytesIO() as file:
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn in its place
        figure.savefig(file, format=form, metadata={"Date": None} if form == "svg" else None)
        return file.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file ``*.png`` or ``*.svg``, and return its path.

    Raises
    ------
    UserError
        The path has another suffix.
    RunError
        The file cannot be written.
    """
    path = Path(path)
    content = picture(figure, path.suffix.removeprefix(".").lower())
    atomic_write(path, lambda file: file.write(content))
    return path


def plain(axes: Any) -> Any:
    """Draw a light grid and no frame above and to the right of `axes`, and return them."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_filter_components(model: ViT, count: int = 28) -> Figure:
    """Return the figure of `filter_components`: each component as an image, in colour for models of colour images."""
    found = filter_components(model, count)
    shown, share = len(found.components), float(found.explained.sum())
    columns = min(7, shown)
    rows = math.ceil(shown / columns)
    _, P, Q, _ = found.components.shape
    height, width = _within(P, Q, 0.85)
    figure = new_figure(max(3.4, width * columns), (height + 0.18) * rows + 0.4)
    filters = f"{count_of(shown, 'principal component')} of the patch filters, {100 * share:.3g} % of their variance"
    figure.suptitle(filters if columns > 4 else filters.replace(", ", ",\n"), fontsize=9)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, component, explained in zip(grid.flat, found.components, found.explained, strict=False):
        image = 0.5 + 0.5 * component / (np.abs(component).max() or 1.0)
        colour = image.shape[2] == 3
        axes.imshow(image if colour else image.mean(axis=2), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{100 * explained:.2g} %", fontsize=7, pad=2)
    return figure


def plot_position_similarity(model: ViT) -> Figure:
    """Return the figure of `position_similarity`: a map for each patch, at its place in the image.

    Of a grid of more than 14 rows or columns, 14 of them are shown, evenly spaced.
    """
    similarity = position_similarity(model)
    rows, columns = (spaced(count, _MOST_TILES) for count in similarity.shape[:2])
    enlarged = math.ceil(20 / max(similarity.shape[2:]))  # so that the lines between small maps are thin
    R, C = (enlarged * count for count in similarity.shape[2:])
    sheet = np.full((len(rows) * (R + 1) - 1, len(columns) * (C + 1) - 1), np.nan)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            tile = np.kron(similarity[row, column], np.ones((enlarged, enlarged)))
            sheet[i * (R + 1) : i * (R + 1) + R, j * (C + 1) : j * (C + 1) + C] = tile
    height, width = _within(sheet.shape[0], sheet.shape[1], 5.2)
    figure = new_figure(width + 1.3, height + 0.8)
    axes = figure.subplots()
    image = axes.imshow(sheet, cmap="viridis", vmin=float(similarity.min()), vmax=1.0, interpolation="nearest")
    axes.set_xticks([j * (C + 1) + (C - 1) / 2 for j in range(len(columns))], [str(column + 1) for column in columns])
    axes.set_yticks([i * (R + 1) + (R - 1) / 2 for i in range(len(rows))], [str(row + 1) for row in rows])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("column of the patch")
    axes.set_ylabel("row of the patch")
    axes.set_title("similarity of its position to all others", fontsize=10)
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)
    return figure


def plot_attention_distance(model: ViT, images: Array) -> Figure:
    """Return the figure of `attention_distance`: a point for each head, by depth, and that of uniform attention."""
    distance = attention_distance(model, images)
    L, H = distance.shape
    uniform = float(patch_distances(model).mean())
    figure = new_figure(5.6, 3.6)
    axes = plain(figure.subplots())
    depth = np.arange(L)
    axes.plot(np.repeat(depth, H), distance.reshape(-1), "o", ms=4, alpha=0.7, color=COLOURS[0], label="a head")
    axes.plot(depth, distance.mean(axis=1), "-", color=COLOURS[1], label="mean of the heads")
    axes.axhline(uniform, ls="--", lw=1, color="#555555", label="equal attention to all patches")
    axes.set_xlabel("block")
    axes.set_ylabel("mean attention distance (pixels)")
    axes.set_ylim(0, 1.1 * max(uniform, float(distance.max())))
    whole_ticks(axes.xaxis)
    axes.set_title(f"attention distance over {count_of(len(images), 'image')}", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def plot_attention_rollout(
    model: ViT, images: Array, pixels: Array | None = None, titles: Sequence[str] = ()
) -> Figure:
    """Return the figure of `attention_rollout`: each image, and its rollout over it. At most eight images are shown.

    Parameters
    ----------
    model : ViT
        The model.
    images : Array
        (B, height, width, C), as `ViT.forward` takes them.
    pixels : Array, optional
        (B, h, w, C), the images as they are shown, uint8, of any size; by default the `images`, from their least value
        to their largest.
    titles : sequence of str
        A title for each image.
    """
    config = expect_vit(model).config
    model.check_images(images)
    if pixels is not None and getattr(pixels, "ndim", 0) != 4:
        given = f"have shape {pixels.shape}" if hasattr(pixels, "shape") else f"are a {type(pixels).__name__}"
        raise UserError(f"pixels {given}; expected an array (B, h, w, C), of the images as they are shown")
    if pixels is not None and len(pixels) != len(images):
        raise UserError(f"pixels has {count_of(len(pixels), 'image')}, and images {len(images)}")
    count = min(len(images), _MOST_IMAGES)
    rollout = attention_rollout(model, images[:count])
    height, width = _within(config.height, config.width, 1.7)
    figure = new_figure(max(2.2, width * min(count, 4)) + 0.2, (2 * height + 0.45) * math.ceil(count / 4) + 0.4)
    figure.suptitle("attention rollout: estimated contribution of each patch", fontsize=10)
    columns = min(count, 4)
    grid = figure.subplots(2 * math.ceil(count / columns), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for b in range(count):
        image = shown(images[b] if pixels is None else pixels[b])
        above, below = (grid[2 * (b // columns) + i, b % columns] for i in (0, 1))
        extent = (-0.5, config.width - 0.5, config.height - 0.5, -0.5)
        above.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent)
        below.imshow(image.mean(axis=2) if image.ndim == 3 else image, cmap="gray", vmin=0, vmax=1, extent=extent)
        below.imshow(rollout[b], cmap="viridis", alpha=0.65, extent=extent, interpolation="bilinear")
        if b < len(titles):
            above.set_title(in_words(titles[b]), fontsize=8, pad=3)
    return figure


def plot_gradient_flow(trace: Trace) -> Figure:
    """Return the figure of `gradient_flow`: norms of activations, their gradients and parameters' by depth."""
    flow = gradient_flow(trace)
    depth = np.arange(len(flow.names))
    figure = new_figure(max(5.4, 1.8 + 0.3 * len(depth)), 4.0)
    axes = plain(figure.subplots())
    series = (
        (flow.activations, "o-", "result"),
        (flow.gradients, "s-", "gradient of the result"),
        (flow.parameters, "^--", "gradient of the parameters"),
    )
    for i, (values, style, text) in enumerate(series):
        seen = np.where(np.isfinite(values) & (values > 0), values, np.nan)  # a logarithmic axis cannot show zero
        axes.plot(depth, seen, style, ms=4, lw=1.4, color=COLOURS[i], label=text)
    if any((values > 0).any() for values, _, _ in series):
        axes.set_yscale("log")
    axes.set_xticks(depth, flow.names, rotation=90, fontsize=8)
    axes.set_ylabel("norm")
    axes.set_title("gradient flow, from the image to the head", fontsize=10)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return figure


def in_words(text: str) -> str:
    """Return text from a file for a figure: without formulas, and with control characters escaped."""
    return printable(text).replace("$", r"\$")


def shown(image: Array) -> Any:
    """Return an image (height, width, C) for imshow: from 0 to 1, in colour if C is 3, else (height, width)."""
    values = to_host(image).astype(np.float64)
    values = values / 255 if image.dtype == np.uint8 else (values - values.min()) / (float(np.ptp(values)) or 1.0)
    return values if values.shape[2] == 3 else values.mean(axis=2)


def spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spaced, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most)).tolist()})


def _within(height: float, width: float, size: float) -> tuple[float, float]:
    """Return height and width scaled so that the larger is `size`, and the smaller at least a quarter of it."""
    scale = size / max(height, width)
    return max(height * scale, size / 4), max(width * scale, size / 4)


def whole_ticks(axis: Any) -> None:
    """Mark whole numbers alone on an axis."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
