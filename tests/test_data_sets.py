"""The digits, the names of data sets, the checks on values, and the validation split."""

import builtins
import dataclasses
import hashlib
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from minivit.data import Dataset, channel_statistics, check_images, load_dataset, split_validation
from minivit.errors import UserError


def small_set(labels: list[int], classes: int = 3, **changes: Any) -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 2, 3, 1), dtype=np.uint8)
    names = tuple("abcdefghij"[:classes])
    fields = {"train_images": images, "train_labels": np.array(labels, np.int64)}
    fields |= {"test_images": images[:1], "test_labels": np.zeros(1, np.int64)}
    return Dataset(**{"name": "small", "class_names": names, "mean": (0.5,), "std": (0.2,), **fields, **changes})


def test_digits_are_scaled_to_the_whole_range_of_uint8() -> None:
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    values = np.unique(dataset.train_images)
    assert dataset.train_images.dtype == np.uint8
    assert len(values) == 17
    np.testing.assert_array_equal(values, np.round(np.arange(17) * 255 / 16))
    sums = sorted(np.concatenate([dataset.train_images, dataset.test_images]).reshape(1797, 64).sum(axis=1, dtype=int))
    expected = np.floor(load_digits().data * 255 / 16 + 0.5).sum(axis=1)
    np.testing.assert_array_equal(sums, sorted(expected))


def test_the_test_digits_are_a_fifth_of_every_class() -> None:
    dataset = load_dataset("digits")
    train, test = np.bincount(dataset.train_labels), np.bincount(dataset.test_labels)
    assert train.sum() + test.sum() == 1797
    assert dataset.test_images.shape == (test.sum(), 8, 8, 1)
    assert (np.abs(test - (train + test) / 5) < 1).all()


def test_the_test_digits_are_fixed() -> None:
    dataset = load_dataset("digits")
    content = dataset.test_images.tobytes() + dataset.test_labels.astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest().startswith("c544feeef385beea")


def test_no_digit_is_in_both_training_and_test_set() -> None:
    dataset = load_dataset("digits")
    train = {image.tobytes() for image in dataset.train_images}
    assert not train & {image.tobytes() for image in dataset.test_images}


def test_the_error_without_scikit_learn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith("sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install .*scikit-learn"):
        load_dataset("digits")


@pytest.mark.parametrize(
    ("name", "meant"), [("digit", "digits"), ("cifar", "cifar10"), ("CIFAR-100", "cifar100"), ("CIFAR-10", "cifar10")]
)
def test_an_unknown_name_suggests_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"'{name}' is neither .* did you mean '{meant}'\? Expected digits"):
        load_dataset(name)


def test_an_unknown_path_has_no_suggestion() -> None:
    with pytest.raises(
        UserError, match=r"'nothing_like_it' is neither a data set nor a file or folder; expected digits"
    ):
        load_dataset("nothing_like_it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.array([0, 1, 3])}, "training image 2 has the label 3; expected 0 to 2"),
        ({"train_labels": np.array([0, -1, 1])}, "training image 1 has the label -1"),
        ({"test_labels": np.array([7])}, "test image 0 has the label 7"),
        ({"train_labels": np.array([0, 1])}, r"labels are int64 \(2,\); expected int64 \(3,\)"),
        ({"train_labels": np.array([0.0, 1.0, 2.0])}, "labels are float64"),
        ({"test_images": np.zeros((1, 3, 3, 1), np.uint8)}, "they must agree"),
        ({"test_images": np.zeros((0, 2, 3, 1), np.uint8)}, "no size 0"),
        ({"test_images": np.zeros((1, 2, 3), np.uint8)}, r"expected \(B, height, width, C\)"),
        ({"test_images": np.zeros((1, 2, 3, 1), np.float32)}, "expected uint8"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std for 1 channels"),
    ],
)
def test_a_data_set_with_a_fault_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_set([0, 1, 2], **changes)


def test_a_data_set_cannot_be_changed() -> None:
    dataset = small_set([0, 1, 2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_that_is_not_finite_is_named(value: float, dtype: type) -> None:
    images: NDArray[Any] = np.zeros((4, 2, 3, 1), dtype)
    check_images(images)
    images[2, 1, 0, 0] = value
    with pytest.raises(UserError, match=rf"photos hold {value} at \[2, 1, 0, 0\]"):
        check_images(images, "photos")


def test_images_of_integers_other_than_uint8_are_refused() -> None:
    with pytest.raises(UserError, match="images are int32; expected uint8 or a float type"):
        check_images(np.zeros((1, 2, 2, 1), np.int32))


def test_statistics_equal_those_of_numpy() -> None:
    images = np.random.default_rng(3).integers(0, 200, (150, 3, 5, 2), dtype=np.uint8)
    images[..., 1] //= 2
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)


def test_the_deviation_of_a_constant_channel_is_1() -> None:
    assert channel_statistics(np.full((3, 2, 2, 1), 51, np.uint8)) == ((0.2,), (1.0,))


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=80),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**31),
)
def test_the_split_is_stratified_and_holds_every_image_once(labels: list[int], fraction: float, seed: int) -> None:
    dataset = small_set(labels)
    wanted = [round(fraction * labels.count(label)) for label in range(3)]
    if 0 < sum(wanted) == len(labels):
        with pytest.raises(UserError, match="use another fraction"):
            split_validation(dataset, fraction, seed)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train, validation = split_validation(dataset, fraction, seed)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    if sum(wanted) or not fraction:
        assert np.bincount(dataset.train_labels[validation], minlength=3).tolist() == wanted
    elif max(map(labels.count, labels)) == 1:
        assert not len(validation)
        assert "no class of small has two images, so none is held out" in str(said[0].message)
    else:  # each class has too few images for its own share
        assert len(validation) >= 1
        assert set(dataset.train_labels[train]) == set(labels)


def test_of_many_classes_of_few_images_a_fraction_of_all_is_held_out() -> None:
    dataset = small_set([label for label in range(50) for _ in range(4)], class_names=tuple(map(str, range(50))))
    train, validation = split_validation(dataset, 0.1, 0)
    assert len(validation) == 20
    assert len(set(dataset.train_labels[train])) == 50


def test_a_validation_part_is_used_whatever_the_fraction_and_belongs_to_the_fingerprint() -> None:
    dataset = small_set([0, 1, 2, 0, 1, 2])
    own = dataclasses.replace(dataset, validation_index=np.array([1, 4]))
    for fraction in (0.0, 0.5):
        train, validation = split_validation(own, fraction, 3)
        assert (train.tolist(), validation.tolist()) == ([0, 2, 3, 5], [1, 4])
    assert own.fingerprint() != dataset.fingerprint()


@pytest.mark.parametrize("index", [[], [1, 1], [2, 1], [0, 6], [-1, 1], [0, 1, 2, 3, 4, 5], [0.0, 1.0]])
def test_a_wrong_validation_part_is_refused(index: list[int]) -> None:
    with pytest.raises(UserError, match="expected ascending indices of some of the training images"):
        small_set([0, 1, 2, 0, 1, 2], validation_index=np.array(index))


def test_the_split_depends_on_the_seed_and_not_on_the_pixels() -> None:
    dataset = small_set([0, 1, 2] * 40)
    first, again, other = (split_validation(dataset, 0.25, seed)[1] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    other_pixels = dataclasses.replace(dataset, train_images=dataset.train_images[::-1])
    assert split_validation(other_pixels, 0.25, 1)[1].tolist() == first.tolist()


def test_every_image_is_about_equally_often_held_out() -> None:
    dataset = small_set([0, 1, 2] * 5)
    held_out = [split_validation(dataset, 0.4, seed)[1] for seed in range(200)]
    counts = np.bincount(np.concatenate(held_out), minlength=15)
    assert counts.min() > 50  # 80 expected, standard deviation 7
    assert counts.max() < 110


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="validation fraction is"):
        split_validation(small_set([0, 1]), fraction, 0)
