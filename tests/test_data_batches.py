"""An epoch visits every image once, in an order that depends on the seed and the epoch only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit.data import batches, epoch_order
from minivit.errors import UserError

COUNTS = st.integers(1, 300)
SEEDS = st.integers(0, 2**40)


@given(count=COUNTS, seed=SEEDS, epoch=st.integers(0, 1000), batch_size=st.integers(1, 400))
def test_every_image_is_in_one_batch(count: int, seed: int, epoch: int, batch_size: int) -> None:
    pieces = list(batches(epoch_order(count, seed, epoch), batch_size))
    assert sorted(np.concatenate(pieces).tolist()) == list(range(count))
    assert [len(piece) for piece in pieces[:-1]] == [batch_size] * (len(pieces) - 1)
    assert 1 <= len(pieces[-1]) <= batch_size


@given(count=COUNTS, seed=SEEDS, epoch=st.integers(0, 1000))
def test_the_order_is_the_same_each_time(count: int, seed: int, epoch: int) -> None:
    assert epoch_order(count, seed, epoch).tolist() == epoch_order(count, seed, epoch).tolist()


def test_each_seed_and_each_epoch_has_a_different_order() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_every_position_is_equally_likely_for_every_image() -> None:
    positions = np.array([np.argsort(epoch_order(5, 0, epoch)) for epoch in range(2000)])
    counts = np.array([np.bincount(positions[:, image], minlength=5) for image in range(5)])
    assert np.abs(counts - 400).max() < 5 * 18  # five standard deviations of a binomial count


def test_neighbours_do_not_stay_together() -> None:
    order = epoch_order(10_000, 0, 0)
    assert (np.abs(np.diff(order)) == 1).sum() < 15  # 2 expected
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="batch size is 0; expected at least 1"):
        batches(np.arange(3), 0)
