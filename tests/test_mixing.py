"""Mixup and CutMix: the labels' shares are those of the images, and sum to one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from devices import nothing_crosses
from hypothesis import given
from hypothesis import strategies as st
from strict import strict

from minivit.arrays import to_backend, to_host
from minivit.ops.metrics import record_metrics
from minivit.ops.mixing import beta, cutmix, cutmix_box, mixed_targets, mixup
from minivit.random import Key

SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**31)


def one_key(seed: int, step: int = 0) -> Key:
    return Key(seed, step, np.zeros(1, np.int64))


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=9), share=SHARES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mixed_labels_sum_to_one_and_name_both_images(dtype: str, labels: list[int], share: float) -> None:
    targets = mixed_targets(np.array(labels), 7, share, dtype)
    assert targets.dtype == dtype
    assert (targets >= 0).all()
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    for row, own, partner in zip(targets, labels, labels[::-1], strict=True):
        if own == partner:
            np.testing.assert_allclose(row[own], 1, rtol=1e-6)
        else:
            np.testing.assert_allclose([row[own], row[partner]], [share, 1 - share], rtol=1e-6, atol=1e-7)


def test_mixup_is_a_weighted_mean_of_an_image_and_its_partner() -> None:
    images = np.random.default_rng(0).normal(size=(5, 3, 4, 2))
    mixed = mixup(images, 0.7)
    np.testing.assert_allclose(mixed[1], 0.7 * images[1] + 0.3 * images[3], atol=1e-15)
    np.testing.assert_allclose(mixed[2], images[2], atol=1e-15)
    np.testing.assert_array_equal(mixup(images, 1.0), images)


@given(height=st.integers(1, 20), width=st.integers(1, 20), share=SHARES, seed=SEEDS)
def test_the_share_of_cutmix_is_the_area_that_is_left(height: int, width: int, share: float, seed: int) -> None:
    own = np.stack([np.zeros((height, width, 1)), np.ones((height, width, 1))]).astype(np.float32)
    before = own.copy()
    box, left = cutmix_box(height, width, share, one_key(seed))
    assert 0 <= left <= 1
    assert left >= share - 1e-12  # what is cut off at the border is left
    np.testing.assert_allclose(cutmix(own, box)[0].mean(), 1 - left, atol=1e-6)
    np.testing.assert_allclose(cutmix(own, box)[1].mean(), left, atol=1e-6)
    np.testing.assert_array_equal(own, before)


def test_cutmix_of_the_whole_share_changes_nothing() -> None:
    assert cutmix_box(8, 8, 1.0, one_key(0))[1] == 1.0


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 2.0, 4.0])
def test_shares_have_the_mean_and_the_variance_of_the_distribution(alpha: float) -> None:
    draws = np.array([beta(one_key(1, step), alpha) for step in range(3000)])
    assert (draws >= 0).all()
    assert (draws <= 1).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(variance / 3000)
    assert abs(draws.var() / variance - 1) < 0.15


def test_mixing_on_a_device_has_the_same_bits() -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.normal(size=(6, 4, 4, 3)).astype(np.float32), np.array([0, 2, 1, 1, 0, 2])
    there, numbers = to_backend(images, strict), to_backend(labels, strict)
    with nothing_crosses("strict"):
        made = [mixup(there, 0.3), cutmix(there, (1, 3, 0, 2)), mixed_targets(numbers, 3, 0.3, "float32")]
    expected = [mixup(images, 0.3), cutmix(images, (1, 3, 0, 2)), mixed_targets(labels, 3, 0.3, "float32")]
    for mine, theirs in zip(made, expected, strict=True):
        np.testing.assert_array_equal(to_host(mine), theirs)


@pytest.mark.parametrize("library", [np, strict])
def test_a_prediction_for_mixed_images_is_correct_if_it_is_the_larger_share(library: Any) -> None:
    def there(x: Any) -> Any:
        return to_backend(np.asarray(x, dtype=np.float32), library)

    logits, targets = there([[3, 1, 0], [0, 1, 0], [1, 0, 2]]), there([[0.6, 0.4, 0], [0.7, 0.3, 0], [0.5, 0, 0.5]])
    record = there([0, 0, 0])
    record_metrics(record, there(0.25), logits, targets, there(0))
    assert to_host(record).tolist() == [0.25, 1.0, 0.0]
