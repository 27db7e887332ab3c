"""Norms, update-to-weight ratios and attention distance by depth, of a model and of the kept steps of its run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import numpy as np

from minivit.arrays import Array, library_name, namespace
from minivit.errors import UserError
from minivit.explorer.measures import update_ratios
from minivit.explorer.subjects import layer_of, layers_by_name
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.tracing.attention import attention_distance
from minivit.tracing.figures import spaced
from minivit.tracing.measures import host, part_of
from minivit.tracing.table import norm_of
from minivit.tracing.trace import Trace, trace
from minivit.train.run_folder import RunFolder
from minivit.weights import load_model, read_tensors

_NO_STEPS_OF_MASKED = "The kept steps of a run of masked pre-training are not on this page."
_NO_RUN = "This model is not from a run, so there are no earlier steps to show."
_NO_STEPS = "The run kept no steps: train with --keep-every 500 to see them."


class Step(TypedDict):
    """The model after one step. schema.json describes the fields."""

    step: int | None
    label: str
    loss: float | None
    y: list[float]
    dy: list[float | None]
    dparameters: list[float | None]
    weights: list[float]
    update_ratio: list[float | None] | None
    distance: list[list[float]] | None


class Depth(TypedDict):
    """All steps, the last of which is the model of the page."""

    layers: list[str]
    steps: list[Step]
    note: str


def depth_of(
    model: Model,
    traced: Trace,
    image: Array,
    label: int | None,
    run: RunFolder | None,
    called: str,
    most: int,
    with_distance: bool,
) -> Depth:
    """Return the measures by depth for one image.

    Parameters
    ----------
    model : Model
        The model of the page.
    traced : Trace
        Of the image.
    image : Array
        (1, height, width, C), as the model takes it.
    label : int or None
        Its label.
    run : RunFolder or None
        Where kept steps are.
    called : str
        What the page calls the model, such as "best".
    most : int
        The number of kept steps, at most.
    with_distance : bool
        Whether the attention distance is measured, which takes the memory of all attention weights.
    """
    layers = [row.name for row in traced.rows()]
    distance = _distance(model, image) if with_distance else None
    last = _step(model, traced, layers, None, called, None, distance)
    if run is None or not isinstance(model, ViT):
        return {"layers": layers, "steps": [last], "note": _NO_RUN if run is None else _NO_STEPS_OF_MASKED}
    try:
        kept = run.kept_steps()
    except UserError:
        return {"layers": layers, "steps": [last], "note": _NO_STEPS}
    chosen = spaced(len(kept), most)
    folders = {number: folder for i, (number, folder) in enumerate(kept.items()) if i in chosen}
    ratios: list[list[float | None] | None] = [None, *_ratios(folders, layers)]
    steps = []
    for (number, folder), ratio in zip(folders.items(), ratios, strict=True):
        earlier = _loaded(folder, model)
        of_step = trace(earlier, image, None if label is None else [label], statistics=True)
        distance = _distance(earlier, image) if with_distance else None
        steps.append(_step(earlier, of_step, layers, number, f"step {number}", ratio, distance))
    note = "" if len(folders) == len(kept) else f"{len(folders)} of the run's {len(kept)} kept steps, evenly chosen."
    return {"layers": layers, "steps": [*steps, last], "note": note}


def _loaded(folder: Path, model: ViT) -> ViT:
    """Return the model of a kept step, in the dtype, on the backend and with the configuration of `model`."""
    values = model.parameters.store.values
    library = library_name(namespace(values))
    earlier = load_model(folder, values.dtype, library)
    own, asked = asdict(earlier.config), asdict(model.config)
    changed = {name: value for name, value in asked.items() if value != own[name]}
    return load_model(folder, values.dtype, library, **changed) if changed else earlier


def _ratios(folders: Mapping[int, Path], layers: list[str]) -> Iterator[list[float | None]]:
    """Yield the median of the update ratios of the parameters of each part, step by step."""
    if len(folders) < 2:
        return
    found = update_ratios((step, read_tensors(folder / "model.safetensors")[0]) for step, folder in folders.items())
    parts = np.array([part_of(name) for name in found.names])
    for row in found.ratios:
        of_parts = [row[(parts == layer) & ~np.isnan(row)] for layer in layers]
        yield [float(np.median(each)) if each.size else None for each in of_parts]


def _step(
    model: Model,
    traced: Trace,
    layers: list[str],
    step: int | None,
    label: str,
    ratio: list[float | None] | None,
    distance: list[list[float]] | None,
) -> Step:
    rows = traced.rows()
    return {
        "step": step,
        "label": label,
        "loss": None if traced.loss is None else float(host(traced.loss)),
        "y": [norm_of(row.y) for row in rows],
        "dy": [None if row.dy is None else norm_of(row.dy) for row in rows],
        "dparameters": [row.gradient for row in rows],
        "weights": _weights(model, layers),
        "update_ratio": ratio,
        "distance": distance,
    }


def _weights(model: Model, layers: list[str]) -> list[float]:
    named = layers_by_name(model)
    norms = {id(each): float(np.linalg.norm(host(each.value))) for each in model.parameters.values()}
    found = [layer_of(name, named) for name in layers]
    return [0.0 if each is None else math.hypot(*(norms[id(p)] for p in each.declared().values())) for each in found]


def _distance(model: Model, image: Array) -> list[list[float]] | None:
    if not isinstance(model, ViT):
        return None
    try:
        return attention_distance(model, image).tolist()
    except UserError:
        return None
