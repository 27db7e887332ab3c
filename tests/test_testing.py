"""The strategies draw what their docstrings say, and the assertions raise the table of the gradient check."""

from typing import Any

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from minivit import layers
from minivit.arrays import Array
from minivit.testing import PRIMES, arrays, assert_gradients, assert_layer_gradients, dtypes, shapes, strided


def scale(x: Array, weight: Array) -> Any:
    return x * weight, (x, weight)


def scale_backward(dy: Array, cache: Any) -> Any:
    x, weight = cache
    return dy * weight, (dy * x).sum(0)


@given(shapes(3))
def test_shapes_have_distinct_prime_sizes(shape: tuple[int, ...]) -> None:
    assert len(shape) == len(set(shape)) == 3
    assert set(shape) <= set(PRIMES)


@given(shapes(2, sizes=(1, 4)))
def test_shapes_take_their_sizes_from_the_caller(shape: tuple[int, ...]) -> None:
    assert sorted(shape) == [1, 4]


def test_shapes_refuses_more_axes_than_sizes() -> None:
    with pytest.raises(ValueError, match="3 axes cannot have different sizes out of 2"):
        shapes(3, sizes=(2, 5))


@given(arrays(shapes(2), dtype=dtypes(), values="mixed"))
def test_arrays_are_finite_and_have_the_dtype(x: Array) -> None:
    assert x.dtype in (np.float32, np.float64)
    assert np.isfinite(x).all()


@pytest.mark.parametrize(("values", "low", "high"), [("normal", 0.5, 2), ("large", 5, 2e4), ("small", 5e-7, 0.2)])
def test_arrays_have_the_requested_scale(values: Any, low: float, high: float) -> None:
    @given(arrays((11, 13), values=values))
    def scaled(x: Array) -> None:
        assert low < np.sqrt(np.mean(x * x)) < high

    scaled()


def test_mixed_arrays_hold_zeros_ties_and_many_scales() -> None:
    x = find(arrays((40, 50), values="mixed"), lambda x: True)
    sizes = np.abs(x[x != 0])
    assert (x == 0).any()
    assert (x == 1).sum() > 1
    assert sizes.max() / sizes.min() > 1e4


def test_arrays_refuses_unknown_values() -> None:
    with pytest.raises(ValueError, match="unknown values 'huge'"):
        arrays((2,), values="huge")  # type: ignore[arg-type]


def test_large_arrays_shrink_to_the_smallest_scale_and_seed() -> None:
    x = find(arrays((100, 100), values="large"), lambda x: np.abs(x).max() > 100)
    np.testing.assert_array_equal(x, np.random.default_rng(0).standard_normal((100, 100)) * 100)


@given(st.data())
def test_strided_views_equal_the_array(data: st.DataObject) -> None:
    x = data.draw(arrays(shapes(3), dtype=dtypes()))
    view = data.draw(strided(x))
    np.testing.assert_array_equal(view, x)
    assert view.dtype == x.dtype


@pytest.mark.parametrize(
    "layout",
    [
        lambda view: view.flags.f_contiguous,
        lambda view: not view.flags.forc,
        lambda view: view.strides[0] < 0,
        lambda view: view.base is not None and np.isnan(view.base).any(),
    ],
    ids=["transposed", "with gaps", "reversed", "with NaN between"],
)
def test_strided_draws_every_layout(layout: Any) -> None:
    find(strided(normal := np.ones((3, 5))), layout)
    assert find(strided(normal), lambda view: True).flags.c_contiguous


def test_strided_takes_any_number_of_axes_and_integers() -> None:
    for x in (np.asarray(3.0), np.arange(5), np.zeros((2, 0))):
        np.testing.assert_array_equal(find(strided(x), lambda view: True), x)


@settings(max_examples=20)
@given(st.data())
def test_assert_gradients_works_in_a_property(data: st.DataObject) -> None:
    shape = data.draw(shapes(2))
    x = data.draw(strided(arrays(shape, dtype=dtypes(), values="small")))
    weight = data.draw(arrays(shape[1:], dtype=st.just(x.dtype)))
    report = assert_gradients(scale, scale_backward, x, weight)
    assert {row.name for row in report.rows} == {"x", "weight"}


def test_assert_gradients_raises_the_table() -> None:
    def wrong(dy: Array, cache: Any) -> Any:
        dx, dweight = scale_backward(dy, cache)
        return -dx, dweight

    with pytest.raises(AssertionError, match=r"(?s)gradient check of scale.*FAILED.*a sign is flipped"):
        assert_gradients(scale, wrong, np.ones((3, 2)), np.ones(2))


def test_assert_layer_gradients() -> None:
    layer = layers.Linear(5, 3).initialize(seed=0, dtype="float64")
    report = assert_layer_gradients(layer, np.random.default_rng(0).standard_normal((7, 5)))
    assert [row.name for row in report.rows] == ["x", "weight", "bias"]


def test_assert_layer_gradients_raises_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layers.Linear(5, 3).initialize(seed=0, dtype="float64")
    monkeypatch.setattr(layers.Linear, "backward", lambda self, dy, cache: dy @ self.weight.value.T)
    with pytest.raises(AssertionError, match="returns zeros: the path to this array is cut"):
        assert_layer_gradients(layer, np.random.default_rng(0).standard_normal((7, 5)))
