"""What the checks take and what forward and backward may return; everything else is a finding, or refused in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from small_passes import B, W, X, linear, normal, tanh, tanh_backward

import minivit
from minivit import layers, ops
from minivit import testing as strategies
from minivit.arrays import Array
from minivit.checking import gradcheck, gradcheck_layer, gradcheck_model


class Twice(minivit.Layer):
    """y = 2 x, with any result of its passes."""

    def __init__(self, backward: Callable[[Array], Any], forward: Callable[[Array], Any] = lambda y: (y, None)) -> None:
        self.returned, self.made = backward, forward

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return self.made(2 * x)

    def backward(self, dy: Array, cache: Any) -> Any:
        return self.returned(2 * dy)


def findings(backward: Callable[[Array], Any]) -> list[str]:
    report = gradcheck_layer(Twice(backward).initialize(dtype="float64"), X)
    assert report.passed is not bool(report.findings), str(report)
    return list(report.findings)


def test_a_layer_of_one_input_returns_one_array() -> None:
    assert findings(lambda dx: dx) == []
    for returned, kind in ((lambda dx: (dx, "junk", dx), "tuple of 3"), (lambda dx: [dx], "list of 1")):
        assert findings(returned) == [f"backward returns a {kind}; expected one array, the gradient of x"]


def test_a_backward_pass_without_its_return_statement_is_found() -> None:
    words = "backward returns None: is its return statement missing?"
    assert findings(lambda dx: None) == [words]
    assert gradcheck(tanh, lambda dy, y: None, X).findings == (words,)
    assert gradcheck(linear, lambda dy, c: None, X, W, B).findings == (words,)
    rows, index = (lambda x, k: (x[k], 0)), np.array([1, 0])
    assert gradcheck(rows, lambda dy, _: None, X, index).findings == (words,)


class Sum(minivit.Layer):
    """Two inputs with gradients, and indices without one."""

    def __init__(self, returned: Callable[[Array], Any]) -> None:
        self.returned = returned

    def forward(self, a: Array, b: Array, ids: Array, rng: Any = None, keep: bool = True) -> Any:  # type: ignore[override]  # three inputs
        return a[ids] + b[ids], ids

    def backward(self, dy: Array, cache: Any) -> Any:
        return self.returned(dy[np.argsort(cache)])


def test_a_layer_of_several_inputs_returns_one_gradient_for_each_float_input() -> None:
    def report(returned: Callable[[Array], Any]) -> Any:
        layer = Sum(returned).initialize(dtype="float64")
        return gradcheck_layer(layer, normal(3, 4), normal(3, 4), np.array([2, 0, 1]))

    for right in (lambda d: (d, d), lambda d: (d, d, None), lambda d: [d, d]):
        assert report(right).passed
    skipped = report(lambda d: (None, d))
    assert skipped.passed
    assert [row.verdict for row in skipped.rows] == ["skipped", "ok"]
    assert report(lambda d: (d, d, None, d)).findings == (
        "backward returns 4 gradients; expected 2, one for each float input",
    )


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda y: y, "forward of Twice must return (y, cache), got a ndarray"),
        (lambda y: [y, None], "forward of Twice must return (y, cache), got a list"),
        (lambda y: (y, None, None), "forward of Twice must return (y, cache), got a tuple of 3"),
        (lambda y: ([y], None), "forward of Twice must return (y, cache) with an array y, got a list as y"),
    ],
)
@pytest.mark.parametrize("samples", [2, 7])
def test_a_layer_that_returns_something_else_than_a_result_and_a_cache_is_named(
    made: Callable[[Array], Any], words: str, samples: int
) -> None:
    layer = Twice(lambda dx: dx, made).initialize(dtype="float64")
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck_layer(layer, normal(samples, 3))
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck_model(layer, normal(samples, 3), np.zeros(samples, int))


@pytest.mark.parametrize("y", [1.5, [1.0], (1.0, 2.0), None])
def test_a_result_that_is_not_an_array_is_named(y: Any) -> None:
    words = f"forward must return (y, cache) with an array y, got a {type(y).__name__} as y"
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck(lambda x: (y, x), tanh_backward, X)


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_results_are_told_to_be_checked_one_at_a_time(kind: Any) -> None:
    words = f"got a {kind.__name__} as y: check one result at a time, or return np.concatenate of them"
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck(lambda x: (kind([x, 2 * x]), x), tanh_backward, X)


def test_a_dict_of_gradients_is_a_wrong_gradient() -> None:
    report = gradcheck_layer(Twice(lambda dx: {"dx": dx}).initialize(dtype="float64"), X)
    assert not report
    assert report.rows[0].note == "backward returns a dict, not an array"
    report = gradcheck(tanh, lambda dy, y: {"dx": tanh_backward(dy, y)}, X)
    assert report.rows[0].note == "backward returns a dict, not an array"
    assert report.findings == ()


class NoKey(minivit.Layer):
    def forward(self, x: Array) -> Any:  # type: ignore[override]  # no rng
        return 2 * x, None

    def backward(self, dy: Array, cache: Any) -> Array:
        return 2 * dy


def test_a_layer_whose_forward_pass_takes_no_rng_is_told_so() -> None:
    with pytest.raises(TypeError, match=re.escape("forward of NoKey takes (x) and no rng; a layer has forward(x, rng")):
        gradcheck_layer(NoKey().initialize(dtype="float64"), X)


class Masked(minivit.Layer):
    """A layer whose forward pass takes more than its input."""

    def forward(self, x: Array, mask: Any = None, rng: Any = None, keep: bool = True, *, scale: float = 1.0) -> Any:  # type: ignore[override] # more arguments
        factor = scale if mask is None else scale * mask
        return x * factor, factor

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy * cache


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("mask", np.ones(5, bool), "mask: it is an argument of forward; pass it after x, by position"),
        ("mask", None, "mask: leave it out: this is the default of forward"),
        ("mask", "causal", "mask: it is an argument of forward; check two functions, or a subclass"),
        ("scale", 2.0, "scale: it is an argument of forward; check two functions, or a subclass whose forward sets it"),
        ("keep", True, "keep: leave it out: both passes are checked"),
        ("frobnicate", 1, "frobnicate; the options are"),
    ],
)
def test_an_argument_of_the_forward_pass_of_a_layer_is_told_how_to_be_given(
    option: str, value: Any, words: str
) -> None:
    layer = Masked().initialize(dtype="float64")
    options: Any = {option: value}
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck_layer(layer, X, **options)
    if option != "frobnicate":
        with pytest.raises(TypeError, match=re.escape("set" if option == "scale" else option)):
            gradcheck_model(layer, X, np.zeros(len(X), int), **options)
    assert gradcheck_layer(layer, X, np.ones(5, bool))


def test_a_setting_of_forward_is_told_to_be_fixed_first() -> None:
    arrays: Any = normal(3, 5), normal(5), normal(5)
    options: Any = {"eps": 1e-6}
    call = "`lambda x, weight, bias: layer_norm(x, weight, bias, eps=1e-06)`"
    words = f"it is an argument of layer_norm; fix it first: {call}"
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck(ops.layer_norm, ops.layer_norm_backward, *arrays, **options)
    with pytest.raises(TypeError, match="no step size is needed"):
        gradcheck(tanh, tanh_backward, X, **options)


@pytest.mark.parametrize("value", [None, "tanh"])
def test_a_setting_among_the_arrays_is_told_to_be_fixed_first(value: Any) -> None:
    words = f"approximate: expected an array.*fix it first: `lambda x: f\\(x, approximate={value!r}\\)`"
    with pytest.raises(TypeError, match=words):
        gradcheck(lambda x, approximate: (x, x), lambda dy, x: dy, X, value)


def test_one_parameter_may_be_given_by_its_name() -> None:
    layer = layers.Linear(5, 3).initialize(dtype="float64")
    report = gradcheck_layer(layer, X, parameters="weight")
    assert [row.full_name for row in report.rows] == ["x", "weight"]
    with pytest.raises(ValueError, match="the layer has no parameter 'weights'"):
        gradcheck_layer(layer, X, parameters="weights")


@given(x=strategies.arrays(5), y=strategies.arrays([2, 3]))
def test_a_size_and_a_list_are_shapes(x: Array, y: Array) -> None:
    assert (x.shape, y.shape) == ((5,), (2, 3))


@pytest.mark.parametrize("shape", ["2, 3", (2, 0.5), None, -1, (2, -1)])
def test_what_is_not_a_shape_is_refused(shape: Any) -> None:
    with pytest.raises(TypeError, match="expected a tuple of sizes"):
        strategies.arrays(shape)
