"""Measures of training runs and of a model's predictions, as arrays on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from minivit import ops
from minivit.arrays import Array, to_host
from minivit.errors import UserError, expect_whole
from minivit.tracing.measures import Floats
from minivit.train.run_folder import RunFolder
from minivit.weights import read_tensors


def confusion(logits: Array, labels: Array) -> NDArray[np.int64]:
    """Return how many images of a label (row) were predicted as a class (column), (C, C).

    Parameters
    ----------
    logits : Array
        (n, C).
    labels : Array
        (n,), whole numbers below C.
    """
    logits, labels = _checked(logits, labels)
    counts = np.zeros((logits.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels, logits.argmax(axis=1)), 1)
    return counts


class Pair(NamedTuple):
    """A class that is taken for another: their numbers, and how many times."""

    label: int
    taken_for: int
    times: int


def worst_pairs(counts: Array, most: int = 5) -> list[Pair]:
    """Return the pairs of classes that are confused most often, the worst first, of a `confusion` matrix."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [Pair(int(i), int(j), int(wrong[i, j])) for i, j in places if wrong[i, j]]


class Calibration(NamedTuple):
    """How well the confidence of a model, the largest probability of an image, agrees with its accuracy.

    Attributes
    ----------
    error : float
        The expected calibration error: the mean over the images of the distance of accuracy and confidence in the bin.
    accuracy, confidence : array
        (bins,): the means in each bin; NaN in a bin without images.
    images : array
        (bins,): the number of images in each bin.
    edges : array
        (bins + 1,): the confidences between the bins, from 0 to 1. A bin includes its upper edge.
    """

    error: float
    accuracy: Floats
    confidence: Floats
    images: NDArray[np.int64]
    edges: Floats


def calibration(logits: Array, labels: Array, bins: int = 15) -> Calibration:
    """Return the calibration of a model in bins of equal width (Guo et al. 2017).

    Parameters
    ----------
    logits : Array
        (n, C).
    labels : Array
        (n,), whole numbers below C.
    bins : int
        The number of bins.
    """
    expect_whole("bins", bins)
    logits, labels = _checked(logits, labels)
    probabilities, _ = ops.softmax(logits.astype(np.float64), keep=False)
    confidence = np.minimum(probabilities.max(axis=1), 1.0)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    images = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, weights, bins) for weights in (right, confidence))
    accuracy, mean = (np.divide(each, images, out=np.full(bins, np.nan), where=images > 0) for each in sums)
    error = float(np.nansum(images * np.abs(accuracy - mean)) / len(labels))
    return Calibration(error, accuracy, mean, images, edges)


class UpdateRatios(NamedTuple):
    """The size of the updates of each parameter relative to its values.

    Attributes
    ----------
    names : list of str
        The parameters.
    steps : array
        (intervals + 1,): the steps whose weights were kept.
    ratios : array
        (intervals, parameters): norm(w[t] - w[s]) / ((t - s) norm(w[s])) for each kept step s and the next one t; NaN
        where w[s] is zero. If every step was kept, these are the ratios of single updates. Otherwise updates that
        cancel each other are not counted: the ratios are at most the means of those of single updates.
    """

    names: list[str]
    steps: NDArray[np.int64]
    ratios: Floats


def update_ratios(run: RunFolder | Iterable[tuple[int, Mapping[str, Array]]]) -> UpdateRatios:
    """Return the ratio of update and weight of each parameter during a run.

    Parameters
    ----------
    run : RunFolder, or iterable of (int, mapping)
        A run that kept the weights of some steps (``--keep-every``); or steps, ascending, and their weights by name.

    Raises
    ------
    UserError
        There are fewer than two steps, or they are not ascending.
    """
    kept = _kept(run) if isinstance(run, RunFolder) else run
    names: list[str] = []
    steps: list[int] = []
    ratios: list[list[float]] = []
    before: dict[str, Array] = {}
    for step, state in kept:
        now = {name: to_host(value).astype(np.float64) for name, value in state.items()}
        if steps and step <= steps[-1]:
            raise UserError(f"step {step} follows step {steps[-1]}; expected ascending steps")
        if steps:
            shapes = [{name: value.shape for name, value in each.items()} for each in (before, now)]
            if shapes[0] != shapes[1]:
                raise UserError(f"steps {steps[-1]} and {step} have parameters of different names or shapes")
            ratios.append([_ratio(before[name], now[name]) / (step - steps[-1]) for name in names])
        names = names or list(now)
        steps.append(step)
        before = now
    if len(steps) < 2:
        raise UserError(f"update ratios compare the weights of kept steps, at least two; the run has {len(steps)}")
    return UpdateRatios(names, np.array(steps), np.array(ratios))


def _kept(run: RunFolder) -> Iterator[tuple[int, Mapping[str, Array]]]:
    for step, folder in run.kept_steps().items():
        yield step, read_tensors(folder / "model.safetensors")[0]


def _ratio(before: Array, now: Array) -> float:
    norm = float(np.linalg.norm(before))
    return float(np.linalg.norm(now - before)) / norm if norm else float("nan")


def curves(runs: Sequence[RunFolder]) -> dict[str, dict[str, Floats]]:
    """Return the metrics of several runs by epoch: for each run by its name, the values of each quantity.

    A run is called as its folder; those of the same name as their paths. The quantities are those of metrics.jsonl
    ("epoch", "train_loss", "val_accuracy", ...); one that an epoch lacks is NaN there.

    Raises
    ------
    UserError
        A run has no metrics yet, or they are damaged.
    """
    found: dict[str, dict[str, Floats]] = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        metrics = run.metrics()
        if not metrics:
            raise UserError(f"{run.path} has no metrics yet: no epoch is complete")
        quantities = dict.fromkeys(
            key for line in metrics for key, value in line.items() if isinstance(value, int | float)
        )
        found[name] = {key: np.array([line.get(key, np.nan) for line in metrics], np.float64) for key in quantities}
    return found


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """Return the names of the runs' folders, or their paths where two have one name."""
    names = [run.path.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run.path) for name, run in zip(names, runs, strict=True)]


def _checked(logits: Array, labels: Array) -> tuple[Array, Array]:
    logits, labels = to_host(logits), to_host(labels)
    if logits.ndim != 2 or 0 in logits.shape or labels.shape != logits.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"logits are {logits.dtype} {logits.shape}, labels {labels.dtype} {labels.shape}; "
            "expected (n, C), and n whole numbers"
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(f"labels are from {labels.min()} to {labels.max()}; expected 0 to {logits.shape[1] - 1}")
    if not np.isfinite(logits).all():
        raise UserError(f"the logits of image {np.flatnonzero(~np.isfinite(logits).all(axis=1))[0]} are not finite")
    return logits, labels
