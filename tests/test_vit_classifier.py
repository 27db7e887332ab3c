"""`minivit.ViTClassifier`: scikit-learn's own checks, images of all shapes, and the tools that take estimators."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import minivit
from minivit import UserError

SMALL: dict[str, Any] = {"depth": 1, "embed_dim": 16, "num_heads": 2}
# Data that are no images: shifted or smoothed they would be other data.
TABLES: dict[str, Any] = {"crop_padding": 0, "label_smoothing": 0.0, "batch_size": 32, "epochs": 15, "lr": 2e-2}
ROUNDING = (
    "probabilities of float32 agree to 1e-6 and not to the 1e-7 that the check asks for: the order of the sums in a "
    "matrix product depends on the number of rows"
)
FAILURES = {"check_methods_sample_order_invariance": ROUNDING, "check_methods_subset_invariance": ROUNDING}


def classifier(**options: Any) -> Any:
    return minivit.ViTClassifier(**{"model_options": SMALL, "epochs": 2, **options})


def digits(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:count], y[:count]


@pytest.mark.filterwarnings("ignore:rows of . numbers are not a square image:UserWarning")
@pytest.mark.filterwarnings("ignore:rows of .. numbers are not a square image:UserWarning")
@parametrize_with_checks(  # type: ignore[untyped-decorator]  # scikit-learn has no types
    [minivit.ViTClassifier(model_options=SMALL, **TABLES)], expected_failed_checks=lambda _: FAILURES
)
def test_an_estimator_passes_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("of", ["order", "subset"])
def test_probabilities_depend_on_the_other_images_by_rounding_alone(of: str) -> None:
    """What the two checks that fail look at."""
    X, y = digits()
    fitted = classifier(epochs=10).fit(X, y)
    index = np.random.default_rng(0).permutation(len(X)) if of == "order" else np.arange(0, len(X), 7)
    np.testing.assert_allclose(fitted.predict_proba(X[index]), fitted.predict_proba(X)[index], atol=2e-6)


def test_digits_are_learnt_from_flat_rows_with_the_defaults() -> None:
    X, y = load_digits(return_X_y=True)
    fitted = minivit.ViTClassifier(epochs=20).fit(X[:1200], y[:1200])
    assert fitted.score(X[1200:], y[1200:]) > 0.9
    assert fitted.image_shape_ == (8, 8, 1)
    assert fitted.n_features_in_ == 64
    assert fitted.result_.recipe.lr == 6e-3  # of the recipe "digits"


def test_it_is_fit_on_the_same_pixels() -> None:
    """With the bits of `minivit.fit`; rows, images and images with a channel are the same."""
    X, y = digits()
    images = np.rint(X.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    estimator = classifier(random_state=np.random.RandomState(5)).fit(images, y)
    seed = int(np.random.RandomState(5).randint(2**31 - 1))
    model = minivit.create_model("vit_nano_patch4_8", seed=seed, in_chans=1, num_classes=10, **SMALL)
    result = minivit.fit(model, images, y, recipe="digits", epochs=2, seed=seed, threads=1)
    logits = result.predict(images, 1)
    assert np.array_equal(logits, estimator.result_.predict(images, 1))
    assert np.array_equal(estimator.predict(images), logits.argmax(axis=1))
    for same in (X, X.reshape(-1, 8, 8), images.reshape(-1, 64), images[..., 0]):
        other = classifier(random_state=np.random.RandomState(5)).fit(same, y)
        assert np.array_equal(other.predict_proba(same), estimator.predict_proba(images))
        assert other.image_shape_ == (8, 8, 1)


def test_the_number_of_workers_changes_no_bit() -> None:
    X, y = digits()
    assert np.array_equal(classifier(n_jobs=2).fit(X, y).predict_proba(X), classifier().fit(X, y).predict_proba(X))


def test_other_pixels_than_uint8_are_scaled_by_the_range_of_the_training_images() -> None:
    X, y = digits()
    fitted = classifier().fit(X, y)
    assert fitted.pixel_range_ == (0.0, 16.0)
    shifted = classifier().fit(3.0 * X - 7.0, y)
    assert np.array_equal(shifted.predict_proba(3.0 * X - 7.0), fitted.predict_proba(X))
    beyond = np.where(X == 16.0, 20.0, np.where(X == 0.0, -4.0, X))
    assert np.array_equal(fitted.predict_proba(beyond), fitted.predict_proba(X))
    of_bytes = classifier().fit(X.astype(np.uint8), y)
    assert of_bytes.pixel_range_ == (0.0, 255.0)
    assert np.array_equal(of_bytes.predict_proba(X), of_bytes.predict_proba(X.astype(np.uint8)))


def test_pixels_of_another_scale_than_in_training_are_warned_of() -> None:
    X, y = digits()
    shares, pixels = X / 16, np.rint(X * 255 / 16).astype(np.uint8)
    of_shares, of_bytes = classifier().fit(shares, y), classifier().fit(pixels, y)
    words = "the pixels are from 0 to {}, and those of training were from 0 to {}: .* another scale"
    for fitted, other, numbers in ((of_bytes, shares, (1, 255)), (of_shares, pixels, (255, 1))):
        with pytest.warns(UserWarning, match=words.format(*numbers)):
            fitted.predict(other)
    with pytest.warns(UserWarning, match="another scale"):
        of_shares.predict(2 * shares - 1)
    of_shares.predict(shares[:3])  # no warning of one image, of a black one, or of the same pixels as other numbers
    of_bytes.predict(np.zeros((1, 64)))
    of_bytes.predict(pixels.astype(np.float64))
    few = classifier().fit((X > 8).astype(np.uint8), y)
    few.predict((X > 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("features", "given", "shape"),
    [
        (64, None, (8, 8, 1)),
        (48, None, (4, 4, 3)),
        (48, (6, 8), (6, 8, 1)),
        (48, (2, 8, 3), (2, 8, 3)),
        (1, None, (1, 1, 1)),
    ],
)
def test_rows_are_images_of_a_square_or_of_the_shape_that_is_given(
    features: int, given: tuple[int, ...] | None, shape: tuple[int, ...]
) -> None:
    """Sides that the patches do not divide are filled up."""
    X = np.random.default_rng(0).random((12, features))
    fitted = classifier(image_shape=given).fit(X, np.arange(12) % 2)
    assert fitted.image_shape_ == shape
    config = fitted.result_.model.config
    assert (config.height % 4, config.width % 4, config.in_chans) == (0, 0, shape[2])
    assert fitted.predict_proba(X).shape == (12, 2)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"patch_size": 7}, 28), ({"patch_size": 16}, 32), ({"patch_size": 8, "patch_stride": 6}, 32)],
)
def test_any_patch_size_fits_images_that_are_filled_up(options: dict[str, int], size: int) -> None:
    X = np.random.default_rng(0).random((12, 28, 28))
    fitted = classifier(model_options={"depth": 1, "embed_dim": 8, "num_heads": 1, **options}).fit(X, np.arange(12) % 2)
    assert fitted.result_.model.config.height == size


def test_a_grid_of_numpy_numbers_is_searched() -> None:
    X, y = digits()
    search = GridSearchCV(classifier(), {"batch_size": np.array([8, 12]), "lr": np.array([0.01], "float32")}, cv=2)
    assert search.fit(X[:40], y[:40]).best_params_["batch_size"] in (8, 12)


def test_rows_that_are_no_square_are_filled_up_with_a_warning() -> None:
    X = np.random.default_rng(0).random((12, 10))
    with pytest.warns(UserWarning, match=r"rows of 10 numbers are not a square image .* 4 x 4; give image_shape="):
        fitted = classifier().fit(X, np.arange(12) % 2)
    assert fitted.image_shape_ == (4, 4, 1)


def test_labels_are_of_any_kind() -> None:
    X, y = digits()
    names = np.array(["odd", "even"])[(y % 2 == 0).astype(int)]
    fitted = classifier().fit(X, names)
    assert list(fitted.classes_) == ["even", "odd"]
    assert set(fitted.predict(X)) <= {"even", "odd"}


def test_it_works_in_the_tools_of_scikit_learn() -> None:
    X, y = digits()
    piped = make_pipeline(MinMaxScaler(), classifier())
    assert len(cross_val_score(piped, X, y, cv=2)) == 2
    search = GridSearchCV(classifier(), {"lr": [0.0, 1e-2]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"lr": 1e-2}
    fitted = search.best_estimator_
    copy = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copy.predict_proba(X), fitted.predict_proba(X))
    assert np.array_equal(clone(fitted).fit(X, y).predict_proba(X), fitted.predict_proba(X))


def test_an_image_shape_that_is_not_that_of_the_images_is_refused() -> None:
    X, y = digits(16)
    images = X.reshape(-1, 8, 8)
    assert classifier(image_shape=(8, 8)).fit(images, y).image_shape_ == (8, 8, 1)
    with pytest.raises(UserError, match=r"image_shape is \(4, 16\), but the images are \(8, 8, 1\)"):
        classifier(image_shape=(4, 16)).fit(images, y)


def test_a_seed_decides_the_result() -> None:
    X, y = digits(64)
    one, same, other = (classifier(random_state=seed).fit(X, y).predict_proba(X) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image_shape": (5, 5)}, r"image_shape is \(5, 5\), but a row has 64 numbers; expected \(height, width\)"),
        ({"image_shape": (64,)}, "expected"),
        ({"model": "vit_nano"}, "vit_nano"),
        ({"epochs": 0}, "epochs is 0"),
        ({"recipe": "digit"}, "did you mean 'digits'"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_refused_when_it_is_fitted(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        classifier(**options).fit(*digits(40))


def test_images_of_another_shape_than_in_training_are_refused() -> None:
    X, y = digits(40)
    fitted = classifier().fit(X.reshape(-1, 8, 8), y)
    with pytest.raises(UserError, match=r"images are \(4, 16, 1\); the classifier was trained on \(8, 8, 1\)"):
        fitted.predict(X.reshape(-1, 4, 16))


def test_without_scikit_learn_a_sentence_says_how_to_install_it() -> None:
    assert "ViTClassifier" in dir(minivit)
    code = (
        "import sys\n"
        "sys.modules['sklearn'] = sys.modules['sklearn.base'] = None\n"
        "import minivit\n"
        "assert 'ViTClassifier' not in dir(minivit)\n"
        "try:\n"
        "    minivit.ViTClassifier\n"
        "except minivit.UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ViTClassifier needs scikit-learn of 1.6 or later: ")
    assert "pip install" in done.stdout
