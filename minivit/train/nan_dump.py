"""What is needed to study the last NaN of a run, in the folder ``nan/`` of the run.

    model.safetensors    the weights before the step; where parameters are what is not finite, those after it, which
                         `read_tensors` reads and `load_model` refuses
    config.json
    batch.npz            images (B, height, width, C) as they entered the model, labels (B,) or, of mixed images, soft
                         targets (B, classes), -1 where there are none; samples (the indices of the images, in the data
                         set's training or test images), part (training, validation or test), step (from 1), traced
                         (positions in the batch of the images in the trace), where
    trace.safetensors    a trace of the layer in which NaN appears first, and of the ops in it; of a step in 16 bits, in
                         the dtype of the parameters, where it shows what is too large for 16 bits

Images whose logits, or whose losses, are not finite come first in the trace.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.data.dataset import Dataset
from minivit.engine import AnyEngine, Engine
from minivit.engine.device_step import DEVICE_BATCH
from minivit.engine.micro_batches import micro_batch_slices
from minivit.errors import UserError
from minivit.files import atomic_write
from minivit.nn.model import Model
from minivit.random import Key
from minivit.tracing.trace import trace
from minivit.train.diagnostics import NonFinitePlace, first_non_finite_parameter
from minivit.train.evaluation import image_transform, predictions
from minivit.train.run_folder import RunFolder
from minivit.train.step import DataLoader

FOLDER = "nan"
TRAINING = "training"
_TRACED = 16  # images: the trace keeps all of their activations at once


class Batch(NamedTuple):
    """The input of the computation that was not finite; `key` is None in evaluation; there may be no labels."""

    images: Array
    labels: Array | None
    samples: Array
    key: Key | None
    part: str = TRAINING


def batch_of_step(data_loader: DataLoader, step: int, samples: Array | None, dtype: Any) -> Callable[[], Batch | None]:
    """Return the function that makes the batch of a step, from 1; None if its samples are not known."""

    def batch() -> Batch | None:
        if samples is None:
            return None
        images, labels, key = data_loader.batch(samples, step - 1, dtype)
        return Batch(images, labels, samples, key)

    return batch


def batch_of_evaluation(
    engine: AnyEngine,
    images: Array,
    labels: Array | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    most: int,
    part: str,
    index: Array | None = None,
) -> Callable[[], Batch]:
    """Return the function that makes a batch of at most `most` uint8 images of an evaluation that was not finite.

    They are those whose results are not finite. Where all results are, and a loss alone is not, they are the first.

    Parameters
    ----------
    engine : Engine or LayerEngine
        The engine that evaluates them.
    images, labels : Array
        All images of the part, and their labels or None.
    mean, std : tuple of float
        Those of the data set.
    most : int
        The largest number of images.
    part : str
        "validation" or "test".
    index : Array, optional
        The indices of `images` in the data set, if these are some of its images.
    """

    def batch() -> Batch:
        found = [at[~np.isfinite(logits).all(axis=1)] for at, logits in predictions(engine, images, mean, std)]
        places = np.concatenate(found)[:most]
        if not len(places):
            places = np.arange(min(most, len(images)))
        x = image_transform(engine, mean, std)(images[places])
        own = None if labels is None else to_backend(np.asarray(labels)[places], namespace(x))
        return Batch(x, own, places if index is None else index[places], None, part)

    return batch


def dump_in_words(
    run: RunFolder,
    engine: Engine,
    dataset: Dataset,
    step: int,
    place: NonFinitePlace,
    batch: Callable[[], Batch | None],
    label_smoothing: float,
) -> str:
    """Write the folder by `write_dump`, and return a sentence about it, or about why it could not be written."""
    try:
        found = batch()
        if found is None:
            return ""
        folder = write_dump(run, engine, dataset, step, place, found, label_smoothing)
    except Exception as error:  # a full disk, too little memory: the error of the run is the one that counts
        return f"What is needed to study it could not be written: {error}"
    words = f"{folder} has the batch, the weights and a trace of the layer"
    return words if first_non_finite_parameter(engine.model) else f"{words}: `minivit trace {folder}`"


def write_dump(
    run: RunFolder,
    engine: Engine,
    dataset: Dataset,
    step: int,
    place: NonFinitePlace,
    batch: Batch,
    label_smoothing: float,
) -> Path:
    """Write the folder, in place of an earlier one, and return its path.

    Parameters
    ----------
    run : RunFolder
        The run.
    engine : Engine
        The engine, with the model as it is.
    dataset : Dataset
        Gives the model file its class names, mean and deviation.
    step : int
        The number of the step, from 1.
    place : NonFinitePlace
        Where NaN or infinity appears first.
    batch : Batch
        Images of the engine's dtype, on its device.
    label_smoothing : float
        That of the loss of a step.

    Raises
    ------
    RunError
        A file cannot be written.
    """
    folder = run.path / FOLDER
    run.save_model(FOLDER, engine.model, dataset, step)
    values = engine.model.parameters.store.values
    with np.errstate(all="ignore"), on_device_of(values):
        computing = engine.model.replica(values.astype(engine.dtype, copy=False))
        chosen = _chosen(computing, batch, engine.micro_batch or DEVICE_BATCH)
        images = batch.images.astype(values.dtype)
        arrays = {
            "images": to_host(images),
            "labels": np.full(len(images), -1) if batch.labels is None else to_host(batch.labels),
            "samples": to_host(batch.samples),
            "part": np.array(batch.part),
            "step": np.array(step),
            "traced": chosen,
            "where": np.array(place.words),
        }
        atomic_write(folder / "batch.npz", lambda file: np.savez(file, allow_pickle=False, **arrays))
        some = to_backend(chosen, namespace(images))
        key = None if batch.key is None else replace(batch.key, sample_ids=batch.key.sample_ids[some])
        at = [place.layer, f"{place.layer}.**"] if place.layer else "**"
        smoothing = 0.0 if key is None else label_smoothing
        # In 16 bits most ops have no reference to trace.
        labels = None if batch.labels is None or engine.model.gives_losses else batch.labels[some]
        traced = trace(engine.model, images[some], labels, at, rng=key, label_smoothing=smoothing)
    traced.save(folder / "trace.safetensors")
    return folder


def _chosen(model: Model, batch: Batch, at_once: int) -> Array:
    """Return the positions of the images to trace, on the host: those whose results are not finite, then the first."""
    finite = []
    for part in micro_batch_slices(len(batch.images), at_once):
        logits = model.forward(batch.images[part], batch.key[part] if batch.key else None, keep=False)[0]
        finite.append(np.isfinite(to_host(logits)).reshape(len(logits), -1).all(axis=1))
    return np.argsort(np.concatenate(finite), kind="stable")[:_TRACED]


def read_batch(folder: Path) -> dict[str, Array]:
    """Return the arrays of ``batch.npz`` in the folder of a dump.

    Raises
    ------
    UserError
        The file is missing or damaged.
    """
    path = folder / "batch.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("images", "labels", "samples", "step", "traced", "where")}
            arrays["part"] = file["part"] if "part" in file else np.array(TRAINING)  # after the first version
            if not (arrays["traced"] < len(arrays["images"])).all():
                raise ValueError("traced names images that it does not have")
            return arrays
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a batch of a run that stopped at NaN: {error}") from error
