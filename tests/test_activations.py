"""ReLU, quick GELU, tanh, LayerScale and the hidden layer before the head compute what their sources say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contract import assert_close, assert_same_bits, normal
from hypothesis import given
from hypothesis import strategies as st

from minivit import UserError, gradcheck, layers, ops
from minivit.arrays import Array
from minivit.nn import initializers
from minivit.nn.activations import ACTIVATION_LAYERS, activation

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def slopes(op: str, x: Array) -> tuple[Array, Array]:
    """Return the result of an activation and its derivative."""
    y, cache = getattr(ops, op)(x)
    return y, getattr(ops, f"{op}_backward")(np.ones_like(x), cache)


@given(x=FINITE)
def test_relu_is_the_larger_of_zero_and_x_and_its_slope_at_zero_is_zero(x: float) -> None:
    y, slope = slopes("relu", np.array([x], "float32"))
    assert y == max(x, 0)
    assert slope == (x > 0)


def test_relu_lets_infinity_and_nan_pass() -> None:
    with np.errstate(all="raise"):
        y, slope = slopes("relu", np.array([-np.inf, np.inf, np.nan]))
    assert_same_bits([y[:2]], [np.array([0, np.inf])])
    assert np.isnan(y[2])
    assert (slope[:2] == [0, 1]).all()


def test_relu_passes_the_check_at_its_kink() -> None:
    x = normal(np.zeros((4, 7)))
    x[0, 0] = x[1, 2] = 0
    assert gradcheck(ops.relu, ops.relu_backward, x)
    assert not gradcheck(ops.relu, lambda dy, cache: 2 * ops.relu_backward(dy, cache), x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quick_gelu_is_x_times_a_sigmoid_with_a_small_relative_error_in_both_tails(dtype: str) -> None:
    x = np.linspace(-45, 45, 181).astype(dtype)
    y, slope = slopes("quick_gelu", x)
    # 1 / (1 + exp(-z)) is accurate for both signs: no subtraction.
    s = np.array([1 / (1 + math.exp(-1.702 * float(v))) for v in x])
    wide = x.astype("float64")
    error = 60 * np.finfo(dtype).eps  # exp(z) has an error of z roundings
    assert np.allclose(y, wide * s, rtol=error, atol=0)
    assert np.allclose(slope, s * (1 + 1.702 * wide * (1 - s)), rtol=30 * error, atol=error)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quick_gelu_of_any_large_argument_is_zero_or_the_argument(dtype: str) -> None:
    largest = np.finfo(dtype).max
    x = np.array([-largest, -1e20, -500.0, 500.0, 1e20, largest], dtype)
    with np.errstate(all="raise"):
        y, slope = slopes("quick_gelu", x)
    assert (y == [0, 0, 0, 500, x[4], largest]).all()
    assert (slope == [0, 0, 0, 1, 1, 1]).all()


@given(x=FINITE)
def test_the_slopes_of_quick_gelu_at_x_and_minus_x_add_to_one(x: float) -> None:
    _, slope = slopes("quick_gelu", np.array([x, -x]))
    assert abs(slope.sum() - 1) < 1e-14


def test_quick_gelu_is_near_gelu_but_is_not_gelu() -> None:
    x = np.linspace(-6, 6, 1001)
    assert 0.02 < np.abs(ops.quick_gelu(x)[0] - ops.gelu(x)[0]).max() < 0.0205


@given(x=st.floats(-300, 300))
def test_tanh_has_the_slope_of_one_over_the_square_of_cosh(x: float) -> None:
    y, slope = slopes("tanh", np.array([x]))
    assert y == pytest.approx(math.tanh(x), rel=1e-15)
    assert abs(slope[0] - (1 / math.cosh(x)) * (1 / math.cosh(x))) <= 1e-15


def test_layer_scale_multiplies_each_feature_and_sums_its_gradient_over_all_tokens() -> None:
    x, gamma, dy = normal(np.zeros((2, 5, 7)), 1), normal(np.zeros(7), 2), normal(np.zeros((2, 5, 7)), 3)
    y, cache = ops.layer_scale(x, gamma)
    assert_close([y], [np.stack([[row * gamma for row in image] for image in x])])
    dx, dgamma = ops.layer_scale_backward(dy, cache)
    assert_close([dx], [dy * gamma])
    assert_close([dgamma], [np.array([(dy[..., d] * x[..., d]).sum() for d in range(7)])])


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 5, 7)])
def test_layer_scale_takes_any_leading_axes(shape: tuple[int, ...]) -> None:
    x, dy = normal(np.zeros(shape), 1), normal(np.zeros(shape), 2)
    _, cache = ops.layer_scale(x, np.ones(7))
    assert_close([ops.layer_scale_backward(dy, cache)[1]], [(dy * x).reshape(-1, 7).sum(axis=0)])


def test_a_layer_scale_starts_at_its_initial_value_and_does_not_decay() -> None:
    layer = layers.LayerScale(7, 1e-3).initialize()
    assert (layer.gamma.value == np.float32(1e-3)).all()
    assert not layer.gamma.decay


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2),
        ("gelu_tanh", lambda v: v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))),
        ("quick_gelu", lambda v: v / (1 + math.exp(-1.702 * v))),
        ("relu", lambda v: max(v, 0.0)),
        ("tanh", math.tanh),
    ],
)
def test_each_name_of_an_activation_is_its_formula(name: str, formula: Any) -> None:
    x = np.linspace(-4, 4, 81)
    assert_close([activation(name)(x)], [np.array([formula(v) for v in x])])


def test_an_unknown_activation_is_an_error_with_the_known_names() -> None:
    assert len(ACTIVATION_LAYERS) == 5
    with pytest.raises(
        UserError, match=r"no activation 'quickgelu': did you mean 'quick_gelu'\? expected one of gelu, "
    ):
        activation("quickgelu")


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_a_hidden_head_is_a_linear_map_and_an_activation(act: str) -> None:
    layer = layers.HiddenHead(7, 11, act).initialize(0, "float64")
    layer.fc.bias.value[...] = normal(layer.fc.bias.value)
    x = normal(np.zeros((3, 7)))
    h = x @ layer.fc.weight.value + layer.fc.bias.value
    assert_close([layer(x)], [np.tanh(h) if act == "tanh" else np.maximum(h, 0)])


@pytest.mark.parametrize(("init", "deviation"), [("timm", 0.02), ("jax", 1 / 20)])
def test_a_hidden_head_starts_as_its_scheme_says(init: str, deviation: float) -> None:
    layer = layers.HiddenHead(400, 100, init=init).initialize()
    assert abs(layer.fc.weight.value.std() / deviation - 1) < 0.02
    assert (layer.fc.bias.value == 0).all()


def test_a_truncated_normal_latent_is_as_wide_as_timms() -> None:
    value = initializers.latent_normal(np.random.default_rng(0), (1, 1, 40000))
    assert np.abs(value).max() <= 2 / 200
    assert abs(value.std() * 200 / 0.8796 - 1) < 0.02


INVALID: dict[str, tuple[Any, str]] = {
    "relu": (lambda: ops.relu(np.arange(3)), "relu: x has dtype int64; expected floating point"),
    "tanh": (lambda: ops.tanh(np.arange(3)), "tanh: x has dtype int64; expected floating point"),
    "quick_gelu": (lambda: ops.quick_gelu(np.arange(3)), "quick_gelu: x has dtype int64; expected floating point"),
    "gamma": (lambda: ops.layer_scale(np.ones((2, 5)), np.ones(7)), r"x has shape \(2, 5\); expected \(..., 7\)"),
    "gamma axes": (lambda: ops.layer_scale(np.ones((2, 5)), np.ones((2, 5))), r"gamma has shape \(2, 5\); expected"),
    "gamma dtype": (lambda: ops.layer_scale(np.ones(5, "f4"), np.ones(5)), "differ in dtype .x float32, gamma float64"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_error_says_what_came_and_what_was_expected(name: str) -> None:
    call, message = INVALID[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()
