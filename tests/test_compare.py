"""`minivit.compare`: functions and layers of a user beside ours, with planted mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strict import StrictArray, strict

import minivit
from minivit import layers, ops
from minivit.arrays import Array, to_backend, to_host
from minivit.checking.backward_passes import random_upstream

Pair = tuple[Callable[..., Any], Callable[..., Any]]
RNG = np.random.default_rng(0)
QKV = RNG.standard_normal((3, 5, 3 * 14))  # two heads of width 7
X, WEIGHT, BIAS = RNG.standard_normal((2, 3, 11)), RNG.standard_normal(11), RNG.standard_normal(11)


def attention(mistake: str = "") -> Pair:
    def by_head(a: Any) -> Any:
        return a.reshape(*a.shape[:2], 2, -1).transpose(0, 2, 1, 3)

    def merged(a: Any) -> Any:
        return a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1)

    def forward(qkv: Any, num_heads: int) -> Any:
        assert num_heads == 2
        q, k, v = (by_head(part) for part in np.split(qkv, 3, axis=-1))
        if mistake == "k and v exchanged":
            k, v = v, k
        if mistake == "head by head":
            q, k, v = qkv.reshape(3, 5, 2, 3, 7).transpose(3, 0, 2, 1, 4)
        scale = {"scale": 1.0, "scale of D": 14**-0.5}.get(mistake, 7**-0.5)
        scores = q @ k.swapaxes(-1, -2) * scale
        weights = np.exp(scores) / np.exp(scores).sum(-2 if mistake == "axis" else -1, keepdims=True)
        y = weights @ v
        return y.reshape(3, 5, 14) if mistake == "joined" else merged(y), (q, k, v, weights)

    def backward(dy: Any, cache: Any) -> Any:
        q, k, v, weights = cache
        dy = by_head(dy)
        dv = (weights if mistake == "dv" else weights.swapaxes(-1, -2)) @ dy
        dweights = dy @ v.swapaxes(-1, -2)
        row = 0 if mistake == "row sum" else (dweights * weights).sum(-1, keepdims=True)
        dproducts = weights * (dweights - row) * (1 if mistake == "dscale" else 7**-0.5)
        dk = (dproducts if mistake == "dk" else dproducts.swapaxes(-1, -2)) @ q
        return np.concatenate([merged(dproducts @ k), merged(dk), merged(dv)], axis=-1)

    return forward, backward


def layer_norm(mistake: str = "", eps: float = 1e-6) -> Pair:
    def forward(x: Any, weight: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        n = x.shape[-1] - (mistake == "n - 1")
        inv_std = ((centred * centred).sum(-1, keepdims=True) / n + (0 if mistake == "eps" else eps)) ** -0.5
        x_hat = centred * inv_std
        y = x_hat * weight + (0 if mistake == "bias" else bias)
        return y, {"x_hat": x_hat, "inv_std": inv_std, "weight": weight}

    def backward(dy: Any, cache: Any) -> Any:
        x_hat, inv_std, weight = cache.values()
        d = dy * weight
        mean = 0 if mistake == "mean" else d.mean(-1, keepdims=True)
        variance = 0 if mistake == "variance" else x_hat * (d * x_hat).mean(-1, keepdims=True)
        gradients = inv_std * (d - mean - variance), (dy * x_hat).sum((0, 1)), dy.sum((0, 1))
        return (gradients[0], gradients[2], gradients[1]) if mistake == "exchanged" else gradients

    return forward, backward


def test_right_functions_are_the_same_as_the_op() -> None:
    comparison = minivit.compare(attention(), ops.attention, QKV, 2)
    assert bool(comparison) is comparison.passed is True
    assert comparison.first is None
    assert [quantity.name for quantity in comparison.quantities] == ["y", "dqkv[q]", "dqkv[k]", "dqkv[v]"]
    assert max(quantity.error for quantity in comparison.quantities) < 1e-14
    assert "same: 4 quantities" in str(comparison)
    comparison.raise_if_different()


@pytest.mark.parametrize(
    ("mistake", "first", "words"),
    [
        ("scale", "y", "the scale 1/sqrt(7) is missing"),
        ("scale of D", "y", "the scale is 1/sqrt(14), ours is 1/sqrt(7)"),
        ("k and v exchanged", "y", "q, v, k are read as q, k, v"),
        ("axis", "y", "the softmax is over the queries"),
        ("joined", "y", "the heads are joined by a reshape without the transposition"),
        ("head by head", "y", "the columns of qkv are read head by head"),
        ("dscale", "dqkv[q]", "the scale 1/sqrt(7)"),
        ("row sum", "dqkv[q]", "softmax's row sum is missing"),
        ("dk", "dqkv[k]", "a matrix is not transposed"),
        ("dv", "dqkv[v]", "the derivative is weights.T @ dy: a matrix is not transposed"),
    ],
)
def test_the_first_wrong_quantity_of_attention_is_named_with_the_mistake(mistake: str, first: str, words: str) -> None:
    comparison = minivit.compare(attention(mistake), ops.attention, QKV, num_heads=2)
    assert not comparison
    assert comparison.first is not None
    assert comparison.first.name == first
    assert words.lower() in comparison.summary().lower()


@pytest.mark.parametrize(
    ("mistake", "first", "words"),
    [
        ("n - 1", "x_hat", "a variance with n - 1 = 10 in place of n = 11"),
        ("eps", "x_hat", "eps = 0.0"),
        ("bias", "y", "the term with bias is missing"),
        ("mean", "dx", "the one through the mean, is missing or wrong"),
        ("variance", "dx", "the term through the variance is missing or wrong"),
        ("exchanged", "dweight", "exchanged"),
    ],
)
def test_the_first_wrong_quantity_of_layer_norm_is_named(mistake: str, first: str, words: str) -> None:
    comparison = minivit.compare(layer_norm(mistake), ops.layer_norm, X, WEIGHT, BIAS, 1e-6)
    assert comparison.first is not None
    assert comparison.first.name == first
    assert words.lower() in comparison.summary().lower()


def test_both_values_at_the_worst_place_are_those_of_the_two_passes() -> None:
    forward, backward = attention("row sum")
    comparison = minivit.compare((forward, backward), ops.attention, QKV, 2, seed=5)
    quantity = comparison["dqkv[q]"]
    dy = random_upstream(5, (3, 5, 14))
    mine = backward(dy, forward(QKV, 2)[1])[..., :14]
    with ops.reference_only():
        ours = ops.attention_backward(dy, ops.attention(QKV, 2)[1])[..., :14]
    worst = tuple(int(k) for k in np.unravel_index(np.argmax(np.abs(mine - ours)), mine.shape))
    assert quantity.index == worst
    assert (quantity.mine, quantity.ours) == pytest.approx((mine[worst], ours[worst]), rel=1e-12)


@pytest.mark.parametrize("mistake", ["", "variance"])
def test_two_functions_beside_a_layer_get_its_parameters(mistake: str) -> None:
    layer = layers.LayerNorm(11, 1e-6).initialize(dtype="float64")
    comparison = minivit.compare(layer_norm(mistake), layer, X)
    assert comparison.passed is not bool(mistake)
    assert [quantity.name for quantity in comparison.quantities] == ["y", "dx", "dweight", "dbias"]


class MyLinear(minivit.Layer):
    def __init__(self, transposed: bool = False) -> None:
        self.bias = minivit.Parameter((7,), minivit.initializers.zeros)
        self.weight = minivit.Parameter((7, 7), minivit.initializers.ones)
        self.transposed = transposed

    def forward(self, x: Any, rng: Any = None, keep: bool = True) -> Any:
        return x @ self.weight.value + self.bias.value, x

    def backward(self, dy: Any, cache: Any) -> Any:
        self.weight.add_grad(cache.T @ dy)
        self.bias.add_grad(dy.sum(0))
        return dy @ (self.weight.value if self.transposed else self.weight.value.T)


def test_a_layer_beside_a_layer_gets_its_values_and_neither_is_changed() -> None:
    mine, ours = MyLinear().initialize(dtype="float64"), layers.Linear(7, 7).initialize(seed=3)
    before = ours.parameters["weight"].value.copy()
    assert minivit.compare(mine, ours, RNG.standard_normal((5, 7)))
    assert np.all(mine.weight.value == 1)
    assert np.array_equal(ours.parameters["weight"].value, before)
    assert not ours.parameters["weight"].grad.any()
    wrong = minivit.compare(MyLinear(transposed=True).initialize(), ours, RNG.standard_normal((5, 7)))
    assert "a transpose of weight is missing or extra" in wrong.summary()


def test_labels_masks_and_arguments_that_are_none_have_no_gradient() -> None:
    logits, labels = RNG.standard_normal((5, 3)), RNG.integers(0, 3, 5)

    def forward(z: Any, labels: Any) -> Any:
        p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        return -np.log(p[np.arange(5), labels]).mean(), (p, labels)

    def backward(dloss: Any, cache: Any) -> Any:
        p, labels = cache
        return dloss * (p - np.eye(3)[labels]) / 5

    assert [q.name for q in minivit.compare((forward, backward), ops.cross_entropy, logits, labels).quantities] == [
        "y",
        "dlogits",
    ]
    mask = (RNG.random((3, 11)) > 0.5) * 2.0
    dropout = (lambda x, mask: (x * mask, mask)), (lambda dy, mask: dy * mask)
    assert minivit.compare(dropout, ops.dropout, X[0], mask)
    tokens, cls_token = RNG.standard_normal((2, 3, 7)), RNG.standard_normal((1, 1, 7))
    embed = (
        lambda x, cls_token: (np.concatenate([np.repeat(cls_token, 2, axis=0), x], axis=1), None),
        lambda dy, _: (dy[:, 1:], dy[:, :1].sum(0, keepdims=True)),
    )
    assert minivit.compare(embed, ops.embed, tokens, None, cls_token)


def test_other_shapes_and_dtypes_are_said() -> None:
    x, weight = RNG.standard_normal((5, 7)), RNG.standard_normal((7, 3))
    right = (lambda x, weight: (x @ weight, (x, weight))), lambda dy, c: (dy @ c[1].T, c[0].T @ dy)
    turned = minivit.compare((lambda x, w: ((x @ w).T, (x, w)), right[1]), ops.linear, x, weight)
    assert turned.first is not None
    assert "yours has the shape (3, 5), ours (5, 3)" in turned.first.note
    assert turned["dx"].verdict == "not compared"
    turned = minivit.compare((right[0], lambda dy, c: (dy @ c[1].T, dy.T @ c[0])), ops.linear, x, weight)
    assert "(3, 7)" in turned["dweight"].note
    assert "looks transposed" in turned.summary()
    none = minivit.compare((right[0], lambda dy, c: (dy @ c[1].T, None)), ops.linear, x, weight)
    assert none["dweight"].verdict == "not compared"
    assert "not compared: dweight" in none.summary()
    wide = (lambda x, weight: (x.astype("f8") @ weight, (x, weight))), right[1]
    said = minivit.compare(wide, ops.linear, x.astype("f4"), weight.astype("f4"))
    assert any("float64 for float32" in finding for finding in said.findings)
    nan = minivit.compare((lambda x, w: (x @ w * np.nan, (x, w)), right[1]), ops.linear, x, weight)
    assert "yours is nan" in nan.summary()


@pytest.mark.parametrize(
    ("mine", "ours", "words"),
    [
        (attention()[0], ops.attention, "mine is the function forward; expected two functions"),
        (attention(), ops.erf, "no backward function"),
        (attention(), np.dot, "or an op such as minivit.ops.attention"),
        (attention(), layers.LayerNorm, "got the class LayerNorm"),
        (((lambda a: (a, None)), (lambda dy, c: dy)), ops.layer_norm, "got other arguments"),
        (layers.LayerNorm(7).initialize(), layers.Linear(7, 3).initialize(), "need the same names and shapes"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_words(mine: Any, ours: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        minivit.compare(mine, ours, QKV)


def test_the_result_is_json_and_html() -> None:
    comparison = minivit.compare(attention("row sum"), ops.attention, QKV, 2)
    values = comparison.to_dict()
    assert (values["passed"], values["first"]) == (False, "dqkv[q]")
    assert "softmax&#x27;s row sum" in comparison._repr_html_()
    assert "dqkv[q]" in repr(comparison)
    with pytest.raises(AssertionError, match="row sum"):
        comparison.raise_if_different()
    with pytest.raises(KeyError, match="the quantities are y"):
        comparison["dq"]


@pytest.mark.parametrize("mistake", ["", "dk"])
def test_arrays_of_a_device_are_compared_on_it(mistake: str) -> None:
    def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: strict_of(function(*map(host_of, args)))

    def host_of(a: Any) -> Any:
        return tuple(map(host_of, a)) if isinstance(a, tuple) else to_host(a) if isinstance(a, StrictArray) else a

    def strict_of(a: Any) -> Any:
        return tuple(map(strict_of, a)) if isinstance(a, tuple) else to_backend(a, strict)

    forward, backward = map(on_device, attention(mistake))
    comparison = minivit.compare((forward, backward), ops.attention, strict_of(QKV), 2)
    assert comparison.passed is not bool(mistake)
    assert not mistake or "a matrix is not transposed" in comparison.summary()


def test_a_forward_pass_that_writes_to_its_argument_leaves_ours_and_the_callers_as_they_are() -> None:
    def writes(qkv: Any, num_heads: int) -> Any:
        result = ops.attention(qkv.copy(), num_heads)
        qkv *= 0.0
        return result

    qkv = np.random.default_rng(0).standard_normal((2, 5, 12))
    before = qkv.copy()
    comparison = minivit.compare((writes, ops.attention_backward), ops.attention, qkv, num_heads=2)
    np.testing.assert_array_equal(qkv, before)
    assert comparison.first is None
    assert any("forward writes to its arguments (qkv)" in words for words in comparison.findings)


def test_a_backward_pass_that_returns_nothing_is_no_success() -> None:
    def forgets(dy: Any, cache: Any) -> None:
        ops.attention_backward(dy, cache)

    qkv = np.random.default_rng(0).standard_normal((2, 5, 12))
    comparison = minivit.compare((ops.attention, forgets), ops.attention, qkv, num_heads=2)
    assert not comparison
    assert "is its return statement missing?" in str(comparison)


def test_arrays_without_elements_are_refused() -> None:
    pair = ops.attention, ops.attention_backward
    with pytest.raises(ValueError, match="there is nothing to compare"):
        minivit.compare(pair, ops.attention, np.zeros((0, 5, 12)), num_heads=2)


class LayerNormWithoutWeight(layers.LayerNorm):
    """Its backward pass leaves out the weight in the gradient of x."""

    def backward(self, dy: Array, cache: Any) -> Array:
        super().backward(dy, cache)
        dx, *_ = ops.layer_norm_backward(dy / self.weight.value, cache)
        return dx


def test_scales_of_1_hide_no_mistake_in_a_layer() -> None:
    mine, ours = (kind(8).initialize(dtype="float64") for kind in (LayerNormWithoutWeight, layers.LayerNorm))
    report = minivit.compare(mine, ours, np.random.default_rng(0).standard_normal((4, 8)))
    assert "with random values for the ones of weight" in report.title
    assert [quantity.name for quantity in report.quantities if quantity.verdict == "DIFFERS"] == ["dx"]
