"""`explore`: everything that the page of a model shows, as plain data for JSON."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

import minivit
from minivit.arrays import Array, on_device_of, to_host
from minivit.errors import UserError
from minivit.explorer.attention import rollout_of
from minivit.explorer.checks import Check, check_layers
from minivit.explorer.depth import depth_of
from minivit.explorer.formulas import formulas
from minivit.explorer.images import LIMITS, Limits, images_within
from minivit.explorer.layers import kinds_of
from minivit.explorer.masks import encoder_of, expect_shown, masks_of, weights_of
from minivit.explorer.mistakes import Mistake, typical_mistakes
from minivit.explorer.sources import sources
from minivit.explorer.tokens import picture
from minivit.nn.masked import MaskedModel
from minivit.nn.model import Model
from minivit.train.run_folder import RunFolder

PageData: TypeAlias = dict[str, Any]

_NO_CHECKS = "the page was made without gradient checks"


def explore(
    model: Model,
    images: Array,
    labels: Array | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] = (),
    names: Sequence[str] = (),
    pixels: Array | None = None,
    predicted: bool = False,
    run: RunFolder | None = None,
    checkpoint: str | None = None,
    subject: tuple[str, str] | None = None,
    title: str = "",
    command: str | None = None,
    checks: bool = True,
    limits: Limits = LIMITS,
) -> PageData:
    """Trace a model, and return what its page shows.

    Parameters
    ----------
    model : Model
        A ViT with a head, or a model of masked pre-training (MaskedPatches, SimMIM, MAE); it stays as it is. The page
        of the latter shows the loss of each image, with the mask of evaluation, and what was seen.
    images : Array
        (B, height, width, C), as the model takes them; at most 16.
    labels : Array or sequence of int, optional
        (B,). Without labels there is no backward pass, except for a model of masked pre-training, which takes none.
    class_names : sequence of str
        The names of all classes.
    names : sequence of str
        The names of the images.
    pixels : Array, optional
        uint8 (B, height, width, C): the images before they were normalised, as they are shown.
    predicted : bool
        Whether `labels` are the model's own predictions, because the labels are not known; the page says so.
    run : RunFolder, optional
        The run of the model, whose kept steps are shown.
    checkpoint : str, optional
        Which model of the run it is, "best" or "last".
    subject : (str, str), optional
        Where the model is from ("run", "file", "name" or "model"), and what it is called.
    title : str
        The title of the page.
    command : str, optional
        The command that makes the page.
    checks : bool
        Whether the gradients are checked and mistakes are tried, which takes most of the time.
    limits : Limits
        What the page may hold.

    Returns
    -------
    PageData
        A dict that `json.dumps` takes; explorer/schema.json describes it. Numbers that are not finite are None.

    Raises
    ------
    UserError
        The model has no head or complex parameters; there are too many images; a label is not a class; or the
        number of labels, names, pixels or class names is wrong.
    """
    expect_shown(model).check_images(images)
    source, called = subject or ("model", type(model).__name__)
    numbers = _checked(model, images, labels, class_names, names, pixels, limits)
    # Numbers that are not finite are in the page; NumPy would warn of them once for each op.
    quiet = np.errstate(over="ignore", invalid="ignore", divide="ignore")
    with quiet, on_device_of(model.parameters.store.values):
        singles = [images[i : i + 1] for i in range(len(images))]
        measured = weights_of(model) <= limits.weights
        found, first, maps, note = images_within(limits, model, singles, numbers)
        for i, image in enumerate(found):
            image["name"] = names[i] if names else f"image {i}"
            image["label_predicted"] = predicted and image["label"] is not None
            shown = images[i], None if pixels is None else pixels[i]
            image["png"] = picture(*shown)
            masks = masks_of(model, singles[i])
            seen = None if masks is None else picture(*shown, masks, model.config.grid)
            image["seen"] = (
                None if masks is None else {"png": seen, "patches": masks.seen, "predicted": masks.predicted}
            )
            image["rollout"] = rollout_of(model, singles[i], maps) if measured else None
        depth = depth_of(model, first.whole, singles[0], numbers[0], run, checkpoint or called, limits.steps, measured)
        checked: dict[str, Check] = {}
        tried: list[tuple[list[Mistake], str]] = [([], _NO_CHECKS)]
        if checks:

            def meanwhile() -> None:
                tried.append(typical_mistakes(model, first.arrays, None if note else maps))

            checked = check_layers(model, first.arrays, first.checked, meanwhile=meanwhile)
        mistakes, why = tried[-1]
    kinds = list(dict.fromkeys(kinds_of(first.whole.records, model).values()))
    return _plain(
        {
            "schema": 1,
            "version": minivit.__version__,
            "title": title or called,
            "made": datetime.date.today().isoformat(),
            "command": command,
            "reduction": _reduction(maps.most, not note),
            "note": note,
            "full": not note,
            "subject": {"source": source, "name": called, "checkpoint": checkpoint},
            "model": _model(model, class_names, called),
            "images": found,
            "maps": maps.table,
            "formulas": formulas(kinds),
            "sources": sources(kinds),
            "checks": checked,
            "mistakes": mistakes,
            "mistakes_note": why,
            "depth": depth,
        }
    )


def _checked(
    model: Model,
    images: Array,
    labels: Array | Sequence[int] | None,
    class_names: Sequence[str],
    names: Sequence[str],
    pixels: Array | None,
    limits: Limits,
) -> list[int | None]:
    """Return the label of each image, None without labels; UserError if the arguments do not fit each other."""
    B, C = len(images), model.config.num_classes
    if images.dtype.kind == "c":
        raise UserError("the model is of complex numbers; a page shows real ones: convert it with astype('float64')")
    if isinstance(model, MaskedModel):
        if labels is not None or class_names:
            raise UserError("a model of masked pre-training has no classes; leave labels and class_names out")
        C = 0
    elif not C:
        raise UserError("the model has no head, and so no loss to go back from; give it one with num_classes")
    if limits.images < B:
        raise UserError(f"{B} images were given; a page shows at most {limits.images}")
    numbers = np.empty(B) if labels is None else np.asarray(to_host(labels) if hasattr(labels, "dtype") else labels)
    if numbers.ndim != 1:
        raise UserError(f"labels are {numbers.tolist()}; expected a whole number for each image")
    for what, count, of in (
        ("labels", len(numbers), "images"),
        ("names", len(names) or B, "images"),
        ("pixels", B if pixels is None else len(pixels), "images"),
        ("class names", len(class_names) or C, "classes"),
    ):
        expected = B if of == "images" else C
        if count != expected:
            raise UserError(f"there are {count} {what} and {expected} {of}; give one for each")
    if labels is None:
        return [None] * B
    if numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers < C)).all():
        raise UserError(f"labels are {numbers.tolist()}; expected a whole number below {C} for each image")
    return [int(label) for label in numbers]


def _reduction(most: int, full: bool) -> str:
    if not full:
        return "Statistics are those of all finite numbers. The arrays themselves are not in this page."
    return (
        f"Arrays are reduced to heat maps of at most {most} x {most} cells of 8 bits. Below each map are its scale and "
        "what a cell is. Attention has a cell for each number. Statistics are those of all finite numbers."
    )


def _model(model: Model, class_names: Sequence[str], name: str) -> dict[str, Any]:
    config = model.config
    return {
        "name": name,
        "class": type(model).__name__,
        "task": model.task if isinstance(model, MaskedModel) else None,
        "parameters": sum(parameter.size for parameter in model.parameters.values()),
        "dtype": str(model.parameters.store.values.dtype),
        "img_size": [config.height, config.width],
        "in_chans": config.in_chans,
        "patch_size": [config.patch_height, config.patch_width],
        "stride": list(config.stride),
        "grid": list(config.grid),
        "prefix_tokens": config.num_prefix_tokens,
        "class_token": config.class_token,
        "tokens": config.num_tokens,
        "embed_dim": config.embed_dim,
        "depth": len(encoder_of(model).blocks),
        "num_heads": config.num_heads,
        "class_names": list(class_names),
    }


def _plain(value: Any) -> Any:
    """Return the data with None for each number that is not finite, as JSON has none."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
