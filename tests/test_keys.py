"""Random bits by key: uniform, independent between seeds, steps, samples and places, and reproducible."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from minivit import Engine, Key, UserError, ViT, create_model, layers, ops
from minivit.arrays import Array

IDS = np.arange(64)
DRAWS = 4096


def bits(key: Key, count: int = DRAWS) -> Array:
    """Return (B, count) bits of a key."""
    return key.bits((len(key.sample_ids), count))


def largest_correlation(rows: Array) -> float:
    """Return the largest |correlation| of two different rows, in standard deviations for independent rows."""
    correlation = np.asarray(np.corrcoef(rows / 2.0**32))
    return float(np.abs(correlation[~np.eye(len(rows), dtype=bool)]).max()) * rows.shape[1] ** 0.5


def excess(values: Array, kinds: int) -> float:
    """Return chi-square of the counts of `values` against the uniform one, in standard deviations from its mean."""
    counts = np.bincount(values.ravel(), minlength=kinds)
    expected = values.size / kinds
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    return (chi_square - (kinds - 1)) / (2 * (kinds - 1)) ** 0.5


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_bytes_and_pairs_of_neighbours_are_uniform(seed: int) -> None:
    words = bits(Key(seed, 3, IDS, "blocks.0.mlp.drop1"))
    assert words.dtype == np.uint32
    for shift in (0, 8, 16, 24):
        column = (words >> shift) & 255
        assert abs(excess(column, 256)) < 5
        high = column >> 4
        assert abs(excess(high[:, :-1] * 16 + high[:, 1:], 256)) < 5
        assert abs(excess(high[:-1] * 16 + high[1:], 256)) < 5


def test_every_bit_is_set_half_the_time() -> None:
    words = bits(Key(0, 0, IDS))
    for shift in range(32):
        share = ((words >> shift) & 1).mean()
        assert abs(share - 0.5) < 5 * 0.5 / words.size**0.5


def test_samples_are_independent() -> None:
    assert largest_correlation(bits(Key(0, 0, IDS))) < 5
    assert largest_correlation(bits(Key(0, 0, np.array([2**k for k in range(32)])))) < 5
    assert largest_correlation(bits(Key(0, 0, np.array([0, 2**31, 2**32 - 1, 2**16, 50_000])))) < 5


def test_a_sample_is_not_a_shifted_copy_of_its_neighbour() -> None:
    rows = bits(Key(0, 0, np.arange(8)))
    for one, other in itertools.permutations(range(8), 2):
        for shift in range(1, 4):
            pair = np.stack([rows[one, shift:], rows[other, :-shift]])
            assert largest_correlation(pair) < 5
            assert not (pair[0] == pair[1]).any()


def test_seeds_steps_and_places_are_independent() -> None:
    one = np.arange(1)
    keys = [
        *(Key(seed, 0, one) for seed in range(16)),
        *(Key(0, step, one) for step in range(1, 16)),
        *(Key(0, 0, one).fold(place) for place in ("a", "b", "ab", "a.b", "b.a", "blocks.1", "blocks.11", "drop")),
    ]
    assert largest_correlation(np.concatenate([bits(key) for key in keys])) < 5


def test_similar_names_give_different_bits() -> None:
    one = np.arange(1)
    keys = [Key(1, 11, one), Key(11, 1, one), Key(1, 1, one, "1"), Key(1, 1, one, "1.1"), Key(111, 1, one)]
    assert len({bits(key, 4).tobytes() for key in keys}) == len(keys)


def test_fold_appends_a_place_to_the_place() -> None:
    key = Key(1, 2, IDS).fold("blocks.3").fold("mlp")
    assert key.place == "blocks.3.mlp"
    assert (bits(key, 4) == bits(Key(1, 2, IDS, "blocks.3.mlp"), 4)).all()


def test_the_bits_are_the_same_in_every_version() -> None:
    """A run must be repeatable from its seed, so these numbers never change."""
    assert bits(Key(0, 0, np.array([0, 1])), 3).tolist() == [
        [1468078837, 3031102170, 1966585393],
        [1294586475, 77632609, 3435605552],
    ]
    key = Key(seed=2024, step=7, sample_ids=np.array([49_999]), place="blocks.3.mlp.drop2")
    assert bits(key, 4).tolist() == [[2286182434, 679830742, 669591157, 1676679806]]


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "uint64"])
def test_the_dtype_of_the_sample_ids_does_not_matter(dtype: str) -> None:
    assert (bits(Key(0, 0, IDS.astype(dtype)), 4) == bits(Key(0, 0, IDS), 4)).all()


def test_a_micro_batch_draws_the_same_bits_as_the_whole_batch() -> None:
    key = Key(1, 2, np.arange(100, 110), "place")
    whole = key.bits((10, 3, 5))
    for part in (slice(0, 3), slice(3, 4), slice(4, 10)):
        assert (key[part].bits((part.stop - part.start, 3, 5)) == whole[part]).all()
    shuffled = Key(1, 2, np.arange(109, 99, -1), "place")
    assert (shuffled.bits((10, 3, 5)) == whole[::-1]).all()


def test_drawing_bits_does_not_change_the_key() -> None:
    ids = np.arange(5, dtype=np.uint32)
    key = Key(1, 2, ids)
    first = key.bits((5, 4))
    assert (ids == np.arange(5)).all()
    assert (key.bits((5, 4)) == first).all()


def test_the_first_bits_do_not_depend_on_the_count() -> None:
    assert (bits(Key(0, 0, IDS), 5) == bits(Key(0, 0, IDS), 50)[:, :5]).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mask_keeps_the_mean_and_drops_at_its_rate(rate: float, dtype: str) -> None:
    mask = Key(0, 0, IDS).keep_mask((64, DRAWS), rate, dtype)
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {0.0, np.dtype(dtype).type(1 / (1 - rate))}
    assert abs((mask == 0).mean() - rate) < 5 * (rate * (1 - rate) / mask.size) ** 0.5


def test_a_mask_is_the_same_for_every_precision() -> None:
    key = Key(0, 0, IDS)
    low, high, step = (key.keep_mask((64, 3), 0.3, dtype) for dtype in ("float32", "float64", "complex128"))
    assert ((low == 0) == (high == 0)).all()
    assert (step == high).all()
    assert step.dtype == np.float64


def test_a_mask_of_rate_zero_drops_nothing() -> None:
    assert (Key(0, 0, IDS).keep_mask((64, DRAWS), 0.0, "float32") == 1).all()


def test_bits_for_a_batch_of_another_size_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"the key has 64 samples, but bits of shape \(3, 5\) were requested"):
        Key(0, 0, IDS).bits((3, 5))


X = np.random.default_rng(0).standard_normal((4, 8, 8, 1)).astype("float32")


def micro(seed: Any = 0) -> ViT:
    return create_model("vit_micro_patch4_8", depth=1, drop_rate=0.5, init="timm", seed=seed)


@pytest.mark.parametrize("make", [lambda: 7, lambda: np.int64(7), lambda: np.random.default_rng(7)])
def test_a_seed_or_a_generator_takes_the_place_of_a_key(make: Any) -> None:
    seed = 7 if not isinstance(make(), np.random.Generator) else int(make().integers(2**63))
    key = Key(seed, 0, np.arange(4))
    vit = micro()
    engine, ones = Engine(vit, 1), np.ones((4, 100))
    assert (vit.forward(X, make())[0] == vit.forward(X, key)[0]).all()
    labels = np.arange(4)
    assert engine.loss_and_gradients(X, labels, make()) == engine.loss_and_gradients(X, labels, key)
    assert (layers.Dropout(0.5).forward(ones, make())[0] == layers.Dropout(0.5).forward(ones, key)[0]).all()
    assert (micro(make()).head.weight.value == micro(seed).head.weight.value).all()


def test_a_generator_gives_other_bits_at_each_call() -> None:
    vit, generator = micro(), np.random.default_rng(0)
    assert (vit.forward(X, generator)[0] != vit.forward(X, generator)[0]).any()


def test_a_layer_alone_says_how_to_make_a_key() -> None:
    mlp = layers.MLP(3, 5).initialize(dtype="float64")
    seed: Any = 7
    generator: Any = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"rng is 7, and .*: minivit\.Key\(7, step=0, sample_ids=np\.arange\(B\)\)"):
        mlp.forward(np.zeros((2, 3)), seed)
    with pytest.raises(
        UserError, match=r"rng is a Generator, .* minivit\.Key\(int\(generator\.integers\(2\*\*63\)\), step"
    ):
        mlp.forward(np.zeros((2, 3)), generator)


@pytest.mark.parametrize("seed", [None, -1, 1.5, "0", True, np.random.RandomState(0), [1, 2]])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(UserError, match=r"seed is .*; expected an integer of at least 0 or a NumPy Generator"):
        micro(seed)
    if seed is not None:
        with pytest.raises(
            UserError, match=r"rng is .*; expected an integer of at least 0, a minivit.Key or a NumPy Gen"
        ):
            micro().forward(X, seed)


def test_a_key_takes_lists_and_generators_and_refuses_other_samples() -> None:
    generator: Any = np.random.default_rng(3)
    ids: Any = [3, 4]
    key = Key(generator, 0, ids)
    assert key.seed == int(np.random.default_rng(3).integers(2**63))
    assert (bits(key) == bits(Key(key.seed, 0, np.array([3, 4])))).all()
    wrong: Any
    for wrong in (4, [[1]], [0.5], "ab"):
        with pytest.raises(UserError, match=r"sample_ids are .*; expected \(B,\) integers, one for each sample"):
            Key(0, 0, wrong)


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1])
def test_a_rate_of_a_mask_that_is_no_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        Key(0, 0, np.arange(3)).keep_mask((3, 2), rate, "float64")


@pytest.mark.parametrize("seed", [-1, np.int64(-1)])
def test_a_seed_of_a_key_is_not_negative(seed: Any) -> None:
    with pytest.raises(UserError, match=r"seed is .*-1.*; expected an integer of at least 0"):
        Key(seed, 0, np.arange(2))


def test_a_step_is_a_whole_number() -> None:
    one: Any = np.int64(1)
    assert (bits(Key(0, one, IDS)) == bits(Key(0, 1, IDS))).all()
    with pytest.raises(TypeError, match="float"):
        Key(0, 1.0, IDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [-0.5, 1.0, 1.5])
def test_a_rate_of_dropout_is_at_least_0_and_below_1(rate: float) -> None:
    for draw in (Key(0, 0, IDS).keep_mask, lambda *args: ops.keep_mask(Key(0, 0, IDS), *args)):
        with pytest.raises(ValueError, match="a dropout rate is at least 0 and below 1"):
            draw((64, 3), rate, "float32")
