"""Probes: classifiers of frozen features, their draws, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import Ridge

import minivit
from minivit import UserError, ViT, ViTConfig
from minivit.data import load_dataset
from minivit.data.dataset import Dataset
from minivit.data.on_demand import OnDemandImages
from minivit.ops.augment import normalize
from minivit.train.probe import KINDS, linear_probe, plot_probes
from minivit.train.probe_classifiers import (
    PENALTIES,
    least_squares,
    nearest_neighbours,
    standardized,
    trained_linear,
)
from minivit.train.probe_features import frozen_features, layer_names

CONFIG = ViTConfig(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
MEAN, STD = (0.4,), (0.3,)


def clusters(n: int, D: int, classes: int = 3, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(n + D)
    labels = np.arange(n) % classes
    centers = generator.standard_normal((classes, D))
    return centers[labels] + noise * generator.standard_normal((n, D)), labels


def images_of(count: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return noise with a bright row of the class."""
    images = np.random.default_rng(0).integers(0, 100, (count, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(count) % classes
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    return images, labels


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.mark.parametrize(("n", "D"), [(40, 7), (12, 30), (9, 9)])
@pytest.mark.parametrize("l2", [1e-3, 1.0, 300.0])
def test_least_squares_are_ridge_regression(n: int, D: int, l2: float) -> None:
    x, labels = clusters(n, D)
    found = least_squares(x, labels, 3, l2)
    ridge = Ridge(alpha=l2, solver="cholesky").fit(x, np.where(labels[:, None] == np.arange(3), 1.0, -1.0))
    assert_allclose(found.weight, ridge.coef_.T, rtol=1e-8, atol=1e-10)
    assert_allclose(found.bias, ridge.intercept_, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("n", "D"), [(20, 4), (10, 15)])
def test_the_penalty_is_the_one_that_predicts_left_out_images_best(n: int, D: int) -> None:
    x, labels = clusters(n, D, noise=2.0)
    targets = np.where(labels[:, None] == np.arange(3), 1.0, -1.0)

    def error(l2: float) -> float:
        total = 0.0
        for i in range(n):
            others = np.arange(n) != i
            ridge = Ridge(alpha=l2).fit(x[others], targets[others])
            total += float(((ridge.predict(x[i : i + 1]) - targets[i]) ** 2).sum())
        return total

    assert least_squares(x, labels, 3).l2 == min(PENALTIES, key=error)


def test_features_that_do_not_vary_have_no_weight() -> None:
    x, labels = clusters(12, 4)
    x[:, 2] = 7.0
    rows, test = standardized(x.astype(np.float32), x.astype(np.float32) + 1)
    assert_allclose(rows.mean(axis=0), 0, atol=1e-6)
    assert_allclose(rows.std(axis=0)[[0, 1, 3]], 1, atol=1e-4)
    assert_array_equal(rows[:, 2], 0)
    found = least_squares(rows, labels, 3)
    assert_allclose(found.weight[2], 0, atol=1e-12)
    assert np.isfinite(found.predict(test)).all()


def test_neighbours_vote_with_the_weight_of_their_cosine() -> None:
    x, labels = clusters(30, 5)
    test, _ = clusters(11, 5)
    for k in (1, 4, 100):
        expected = []
        for row in test:
            cosines = x @ row / np.linalg.norm(x, axis=1) / np.linalg.norm(row)
            votes = np.zeros(3)
            for i in np.argsort(-cosines)[:k]:
                votes[labels[i]] += np.exp(cosines[i] / 0.07)
            expected.append(votes.argmax())
        assert_array_equal(nearest_neighbours(x, labels, test, 3, k=k), expected)


def test_a_linear_layer_learns_what_can_be_separated_and_is_the_same_for_a_seed() -> None:
    x, labels = clusters(300, 6, noise=0.05)
    predicted = trained_linear(x[:200], labels[:200], x[200:], 3)
    assert_array_equal(predicted, labels[200:])
    assert_array_equal(predicted, trained_linear(x[:200], labels[:200], x[200:], 3))


@pytest.mark.parametrize(
    "fields",
    [{}, {"global_pool": "avg"}, {"global_pool": "map"}, {"reg_tokens": 2, "representation_size": 5}],
    ids=str,
)
def test_features_are_those_of_the_model(fields: dict[str, Any]) -> None:
    model = ViT(minivit.get_config("vit_micro_patch4_8", **{**vars_of(CONFIG), **fields}), seed=1)
    images, _ = images_of(21)
    names = layer_names(model)
    assert names == ["0", "1", "2", "head"]
    found = frozen_features(model, images, MEAN, STD, names, threads=1)
    x = normalize(images, MEAN, STD, np.dtype("float32"))
    assert_allclose(model.head(found["head"]), model(x), rtol=1e-4, atol=1e-5)
    tokens = model.get_intermediate_layers(x, [0], return_prefix_tokens=None)[0]
    pooled = tokens[:, 0] if model.config.global_pool == "token" else tokens[:, model.config.first_pooled :].mean(1)
    assert_allclose(found["1"], pooled, rtol=1e-4, atol=1e-5)
    assert found["0"].shape == (21, 8)
    assert_allclose(model.forward_head(model.forward_features(x)), model(x), rtol=1e-4, atol=1e-5)


def vars_of(config: ViTConfig) -> dict[str, Any]:
    names = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
    return {name: getattr(config, name) for name in names}


class Source:
    """The source of images in memory."""

    background = True

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.shape = images, images.shape

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.images[index]


def test_features_have_the_same_bits_for_any_threads_and_wherever_the_images_are() -> None:
    model, (images, _) = ViT(CONFIG, seed=1), images_of(300)
    told: list[tuple[str, int, int]] = []
    one = frozen_features(model, images, MEAN, STD, threads=1, progress=lambda *said: told.append(said))["head"]
    many: Any = OnDemandImages(Source(images))
    assert_array_equal(frozen_features(model, many, MEAN, STD, threads=3)["head"], one)
    assert told[-1] == ("features", 300, 300)


def test_a_device_has_the_same_features() -> None:
    images, _ = images_of(10)
    host, device = (ViT(CONFIG, seed=1, backend=name) for name in ("numpy", "strict"))
    expected, found = (frozen_features(model, images, MEAN, STD, ("1", "head")) for model in (host, device))
    for name in expected:
        assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def test_shots_are_drawn_once_for_all_models_and_more_shots_do_better(digits: Dataset) -> None:
    images = digits.train_images, digits.train_labels, digits.test_images, digits.test_labels
    models = [minivit.create_model("vit_micro_patch4_8", in_chans=1, seed=seed) for seed in (0, 0, 1)]
    found = [linear_probe(model, *images, shots=(1, 10, None), draws=3, kinds=KINDS[:2]) for model in models]
    assert found[0] == found[1]
    assert found[0] != found[2]
    rows = {(row.kind, row.shots): row for row in found[0]}
    assert len(rows[("least-squares", 1)].accuracies) == 3
    assert len(rows[("least-squares", None)].accuracies) == 1
    for kind in KINDS[:2]:
        few, some, all_of_them = (rows[(kind, shots)] for shots in (1, 10, None))
        assert 0.15 < few.mean < some.mean < all_of_them.mean
        assert few.spread > 0
        assert all_of_them.spread == 0


def test_accuracy_counts_all_test_images() -> None:
    images, labels = images_of(60)
    model = ViT(CONFIG, seed=1)
    (row,) = linear_probe(model, images, labels, images[:10], labels[:10] * 0 + 2, shots=(None,))
    assert 0 < row.mean < 1  # the labels of some are right by chance
    assert row.accuracies[0] * 10 == pytest.approx(round(row.accuracies[0] * 10))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "few images": ({"shots": (21,)}, "class 0 has 20 images, fewer than the 21 shots"),
    "no shots": ({"shots": (0,)}, "shots is 0"),
    "no draws": ({"draws": 0}, "draws is 0"),
    "a kind": ({"kinds": ("svm",)}, "there is no probe 'svm'; expected some of least-squares, knn, linear"),
    "a layer": ({"layers": ("3",)}, "there is no layer '3'; expected 0 to 2, or 'head'"),
    "a penalty": ({"l2": -1.0}, "l2 is -1.0; expected more than 0"),
    "one class": ({"labels": np.zeros(60, np.int64)}, "one class alone"),
    "soft labels": ({"labels": np.zeros(60)}, r"labels are float64 \(60,\); expected \(60,\) integers"),
    "fewer labels": ({"labels": np.zeros(59, np.int64)}, r"expected \(60,\) integers"),
    "floats": ({"images": np.zeros((60, 8, 8, 1), np.float32)}, "images are float32; expected uint8"),
    "a mean alone": ({"mean": (0.5,)}, r"mean is \(0.5,\) and std \(\); expected a number of each for each of 1 "),
    "a std alone": ({"std": (0.5,)}, r"mean is \(\) and std \(0.5,\); expected"),
    "no shots at all": ({"shots": ()}, r"shots is \(\); expected numbers of images"),
    "one number": ({"shots": 1}, "shots is 1; expected numbers of images"),
    "the name of one layer": (
        {"layers": "head"},
        r"layers is 'head'; expected names of layers, such as \('head', '0'\)",
    ),
    "no layers": ({"layers": []}, r"layers is \[\]; expected names"),
    "the name of one kind": ({"kinds": "knn"}, "kinds is 'knn'; expected a sequence of some of least-squares, knn"),
    "no kinds": ({"kinds": ()}, r"kinds is \(\); expected"),
    "another size": ({"images": np.zeros((60, 4, 8, 1), np.uint8)}, "img_size|size|shape"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_cannot_be_probed_is_refused(bad: str) -> None:
    images, labels = images_of(60)
    given, words = BAD[bad]
    arguments = {"images": images, "labels": labels, **given}
    if bad == "one class":
        arguments |= {"test_images": images, "test_labels": np.zeros(60, np.int64)}
    arguments = {"test_images": images, "test_labels": labels, **arguments}
    with pytest.raises((UserError, ValueError), match=words):
        linear_probe(ViT(CONFIG, seed=1), **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_are_not_finite_are_said(kind: str) -> None:
    images, labels = images_of(60)
    model = ViT(CONFIG, seed=1)
    model.parameters["blocks.1.mlp.fc2.bias"].value[0] = np.nan
    with np.errstate(all="ignore"), pytest.raises(UserError, match="the features of layer head are not finite"):
        linear_probe(model, images, labels, images, labels, shots=(5,), kinds=(kind,))


def test_a_class_that_lacks_images_is_named() -> None:
    images, labels = images_of(60)
    labels = np.where(labels == 2, 0, labels)
    labels[0] = 2
    with pytest.raises(UserError, match="class owl has 1 image, fewer than the 10 shots"):
        linear_probe(ViT(CONFIG), images, labels, images, labels, class_names=("cat", "dog", "owl"))


def test_the_figure_has_a_line_for_each_classifier_and_number_of_shots() -> None:
    images, labels = images_of(60)
    found = linear_probe(
        ViT(CONFIG), images, labels, images, labels, shots=(1, None), kinds=KINDS, layers=("0", "1", "2", "head")
    )
    (axes,) = plot_probes(found).axes
    assert len(axes.containers) == 6
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "2", "head"]
