"""Probes: how well a simple classifier of a model's frozen features does, with few labelled images or many.

The few-shot evaluation of Dosovitskiy et al. 2020: `shots` images of each class are drawn, the classifier is fitted to
their features, and its accuracy is that of all test images. Draws depend on the seed and the labels alone, so that two
models are compared on the same images.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from minivit.arrays import Array
from minivit.data.dataset import ProgressCallback, channel_statistics, check_images
from minivit.errors import UserError, count_of, expect_whole
from minivit.nn.vit import ViT
from minivit.random import Key
from minivit.tracing.figures import COLOURS, new_figure, plain
from minivit.train.probe_classifiers import least_squares, nearest_neighbours, standardized, trained_linear
from minivit.train.probe_features import HEAD, frozen_features

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("least-squares", "knn", "linear")
SHOTS = (1, 5, 10, None)


@dataclass(frozen=True)
class ProbeAccuracy:
    """The accuracies of one classifier on the features of one layer.

    Parameters
    ----------
    layer : str
        "head", or the number of blocks before the features; see `frozen_features`.
    kind : str
        "least-squares", "knn" or "linear".
    shots : int or None
        Images of each class; None for all.
    accuracies : tuple of float
        The accuracy on the test images for each draw of the shots.
    """

    layer: str
    kind: str
    shots: int | None
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the draws."""
        return statistics.fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """The standard deviation over the draws; 0 for one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def linear_probe(
    model: ViT,
    images: Array,
    labels: Array,
    test_images: Array,
    test_labels: Array,
    *,
    shots: Sequence[int | None] = SHOTS,
    draws: int = 5,
    kinds: Sequence[str] = KINDS[:1],
    layers: Sequence[str] = (HEAD,),
    l2: float | None = None,
    seed: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    threads: int | None = None,
    progress: ProgressCallback | None = None,
    class_names: Sequence[str] = (),
) -> list[ProbeAccuracy]:
    """Return the accuracy on test images of classifiers of a model's frozen features.

    Parameters
    ----------
    model : ViT
        Is not changed; its head is not used.
    images, labels : Array
        Images to learn from: (n, height, width, C) uint8 on the host, and (n,) integers from 0.
    test_images, test_labels : Array
        The images that count, all of them.
    shots : sequence of int or None
        Numbers of images of each class; None for all images.
    draws : int
        Draws of the shots; all images are drawn once.
    kinds : sequence of str
        "least-squares": in closed form, as in the paper; "knn": a vote of the 20 nearest neighbours; "linear": a layer
        that is trained on cross-entropy.
    layers : sequence of str
        Whose features are used: "head" for what the head reads, "0" to the number of blocks; see `frozen_features`.
    l2 : float, optional
        The penalty of least squares; by default it is chosen for each draw by leaving out one image at a time.
    seed : int
        The seed of the draws.
    mean, std : tuple of float
        Of each channel, for pixels from 0 to 1; by default those of `images`.
    threads : int, optional
        By default the machine's cores; it changes no draw.
    progress : callable, optional
        Called as progress(what, done, total).
    class_names : sequence of str
        Names of the classes for messages.

    Returns
    -------
    list of ProbeAccuracy
        One for each layer, kind and number of shots, in this order.

    Raises
    ------
    UserError
        A class has fewer images than shots, there is one class alone, or an argument cannot be used.
    """
    if not isinstance(model, ViT):
        raise UserError(f"linear_probe was given a {type(model).__name__}; expected a ViT, such as model.encoder")
    expect_whole("draws", draws)
    for name, values, expected in (
        ("shots", shots, "numbers of images of each class, such as (1, 10, None)"),
        ("kinds", kinds, f"a sequence of some of {', '.join(KINDS)}"),
        ("layers", layers, f"names of layers, such as ({HEAD!r}, '0')"),
    ):
        if isinstance(values, str) or not np.iterable(values) or not len(values):
            raise UserError(f"{name} is {values!r}; expected {expected}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"there is no probe {unknown[0]!r}; expected some of {', '.join(KINDS)}")
    if l2 is not None and not 0 < l2 < np.inf:
        raise UserError(f"l2 is {l2}; expected more than 0")
    labels, test_labels = _labels(labels, images, "labels"), _labels(test_labels, test_images, "test labels")
    mean, std = _statistics(mean, std, images)
    classes = int(max(labels.max(), test_labels.max())) + 1
    _expect_enough(labels, classes, shots, class_names)
    chosen = {shot: [_drawn(labels, shot, seed, draw) for draw in range(draws if shot else 1)] for shot in shots}
    used = np.unique(np.concatenate([index for draws_of in chosen.values() for index in draws_of]))
    train, test = (
        frozen_features(model, some, mean, std, layers, threads, progress) for some in (images[used], test_images)
    )
    for layer in layers:
        if not (np.isfinite(train[layer]).all() and np.isfinite(test[layer]).all()):
            raise UserError(f"the features of layer {layer} are not finite: the model has NaN or infinity")
    found = []
    total = len(layers) * len(kinds) * sum(map(len, chosen.values()))
    done = 0
    for layer in layers:
        for kind in kinds:
            for shot in shots:
                accuracies = []
                for draw, index in enumerate(chosen[shot]):
                    rows = train[layer][np.searchsorted(used, index)]
                    predict = _classifier(kind, l2, seed + draw)
                    predicted = predict(*standardized(rows, test[layer]), labels[index], classes)
                    accuracies.append(float((predicted == test_labels).mean()))
                    done += 1
                    if progress is not None:
                        progress("probes", done, total)
                found.append(ProbeAccuracy(layer, kind, shot, tuple(accuracies)))
    return found


def _classifier(kind: str, l2: float | None, seed: int) -> Callable[..., NDArray[np.int64]]:
    """Return the function of features, test features, labels and classes that predicts the labels of the test."""
    if kind == "least-squares":
        return lambda x, test, labels, classes: least_squares(x, labels, classes, l2).predict(test)
    if kind == "knn":
        return lambda x, test, labels, classes: nearest_neighbours(x, labels, test, classes)
    return lambda x, test, labels, classes: trained_linear(x, labels, test, classes, seed)


def _statistics(mean: Sequence[float], std: Sequence[float], images: Array) -> tuple[tuple[float, ...], ...]:
    """Return mean and std of each channel, those of the images by default."""
    if not len(mean) and not len(std):
        return channel_statistics(images)
    channels = images.shape[3]
    if len(mean) != channels or len(std) != channels or not min(std) > 0:
        raise UserError(f"mean is {mean} and std {std}; expected a number of each for each of {channels} channels")
    return tuple(map(float, mean)), tuple(map(float, std))


def _labels(labels: Any, images: Array, name: str) -> NDArray[np.int64]:
    check_images(images, name.replace("labels", "images"))
    if images.dtype != np.uint8:
        raise UserError(f"images are {images.dtype}; expected uint8")
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        raise UserError(f"{name} are {labels.dtype} {labels.shape}; expected ({len(images)},) integers from 0")
    return labels.astype(np.int64)


def _expect_enough(
    labels: NDArray[np.int64], classes: int, shots: Sequence[int | None], class_names: Sequence[str]
) -> None:
    if classes < 2:
        raise UserError("there is one class alone, so that a probe has nothing to tell apart: give images with labels")
    counts = np.bincount(labels, minlength=classes).tolist()
    few = counts.index(min(counts))
    most = max((shot for shot in shots if shot is not None), default=0)
    for shot in shots:
        if shot is not None:
            expect_whole("shots", shot)
    if counts[few] < most:
        name = class_names[few] if class_names else str(few)
        have = count_of(int(counts[few]), "image")
        raise UserError(f"class {name} has {have}, fewer than the {most} shots that were asked for")


def _drawn(labels: NDArray[np.int64], shots: int | None, seed: int, draw: int) -> NDArray[np.int64]:
    """Return the ascending indices of `shots` images of each class, or of all."""
    if shots is None:
        return np.arange(len(labels))
    scores = Key(seed, draw, np.arange(len(labels))).fold("shots").bits((len(labels),))
    order = np.argsort(scores, kind="stable")
    return np.sort(np.concatenate([order[labels[order] == label][:shots] for label in np.unique(labels)]))


def plot_probes(found: Sequence[ProbeAccuracy]) -> Figure:
    """Return the figure of probes: accuracy by layer, a line for each classifier and number of shots."""
    figure = new_figure(6.4, 4.0)
    axes: Any = plain(figure.subplots())
    names = list(dict.fromkeys(row.layer for row in found))
    numbers = list(dict.fromkeys(row.shots for row in found))
    for kind, shots in dict.fromkeys((row.kind, row.shots) for row in found):
        rows = [row for row in found if (row.kind, row.shots) == (kind, shots)]
        axes.errorbar(
            [names.index(row.layer) for row in rows],
            [100 * row.mean for row in rows],
            [100 * row.spread for row in rows],
            color=COLOURS[numbers.index(shots) % len(COLOURS)],
            ls=("-", "--", ":")[KINDS.index(kind)],
            marker="o",
            ms=3,
            lw=1,
            label=f"{kind}, {'all images' if shots is None else f'{shots} a class'}",
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("blocks before the features; head: what the head reads")
    axes.set_ylabel("test accuracy (%)")
    axes.legend(frameon=False, fontsize=7)
    return figure
