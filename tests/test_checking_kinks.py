"""At a point where a function is not differentiable, a right backward pass passes with a note and a wrong one fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from small_passes import normal

from minivit.arrays import Array
from minivit.checking import gradcheck
from minivit.checking.kinks import find_kinks
from minivit.checking.methods import Probe
from minivit.testing import arrays, shapes


def relu(x: Array) -> Any:
    return np.maximum(x, 0), x


def largest(x: Array) -> Any:
    return x.max(axis=-1), x


def first_largest(dy: Array, x: Array) -> Any:
    return np.where(np.arange(x.shape[-1]) == x.argmax(-1)[..., None], dy[..., None], 0)


def scatter_sorted(dy: Array, x: Array) -> Any:
    order = np.argsort(np.argsort(x, -1, kind="stable"), -1, kind="stable")
    return np.take_along_axis(dy, order, -1)


RIGHT: dict[str, tuple[Any, Any]] = {
    "relu, 0 at 0": (relu, lambda dy, x: dy * (x > 0)),
    "relu, 1 at 0": (relu, lambda dy, x: dy * (x >= 0)),
    "relu by where": (lambda x: (np.where(x.real > 0, x, 0), x), lambda dy, x: dy * (x > 0)),
    "leaky relu": (lambda x: (np.where(x > 0, x, 0.1 * x), x), lambda dy, x: dy * np.where(x > 0, 1, 0.1)),
    "abs": (lambda x: (np.abs(x), x), lambda dy, x: dy * np.sign(x)),
    "clip": (lambda x: (np.clip(x, 0, 1), x), lambda dy, x: dy * ((x > 0) & (x < 1))),
    "hinge": (lambda x: (np.maximum(0, 1 - x).sum(), x), lambda dy, x: -dy * (x < 1)),
    "max": (largest, first_largest),
    "sort": (lambda x: (np.sort(x, -1), x), scatter_sorted),
}
INTEGERS = np.random.default_rng(3).integers(-1, 2, (4, 7)).astype(float)  # zeros, ones and ties in each row
ZEROS = normal(4, 7)
ZEROS[0, 0] = ZEROS[1, 2] = 0


@pytest.mark.parametrize("x", [ZEROS, INTEGERS, np.zeros((3, 4))], ids=["two zeros", "integers", "zeros"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_pass_passes_at_kinks(name: str, x: Array) -> None:
    report = gradcheck(*RIGHT[name], x)
    assert report, str(report)


WRONG: dict[str, tuple[Any, Any]] = {
    "no mask": (relu, lambda dy, x: dy + 0),
    "the other half": (relu, lambda dy, x: dy * (x < 0)),
    "a factor": (relu, lambda dy, x: 1.001 * dy * (x > 0)),
    "nothing": (relu, lambda dy, x: 0 * dy),
    "abs as relu": (lambda x: (np.abs(x), x), lambda dy, x: dy * (x > 0)),
    "5 at 0": (relu, lambda dy, x: dy * (x > 0) + 5 * (x == 0)),
    "-dy at 0": (relu, lambda dy, x: dy * (x > 0) - dy * (x == 0)),
}


@pytest.mark.parametrize("x", [ZEROS, INTEGERS, np.zeros((3, 4))], ids=["two zeros", "integers", "zeros"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_pass_is_not_excused_by_kinks(name: str, x: Array) -> None:
    assert not gradcheck(*WRONG[name], x)


def test_a_tie_that_is_counted_twice_fails() -> None:
    report = gradcheck(largest, lambda dy, x: (x == x.max(-1, keepdims=True)) * dy[:, None], INTEGERS)
    assert not report
    assert "is a tie counted twice?" in str(report)


def test_the_report_names_the_kink_and_its_one_sided_derivatives() -> None:
    accepted = str(gradcheck(*RIGHT["relu, 0 at 0"], ZEROS))
    assert "kink at [0, 0]: the one-sided derivatives are 0 and 1.18592, backward gives 0, which is acc" in accepted
    assert "1 more like it" in accepted
    assert "which is not between them" in str(gradcheck(*WRONG["5 at 0"], ZEROS))


def test_only_the_elements_at_kinks_are_found() -> None:
    def kinks(f: Any, x: Array) -> list[int]:
        probe = Probe(f, x, f(x), np.ones(f(x).shape))
        return np.flatnonzero(find_kinks(probe, x.shape, np.random.default_rng(0))).tolist()

    x = normal(300)
    x[[3, 250]] = 0
    assert kinks(lambda x: np.maximum(x, 0), x) == [3, 250]
    for smooth in (np.tanh, np.exp, np.square, lambda x: x**3, lambda x: x * x.sum(), np.cos):
        assert kinks(smooth, x) == []


@given(x=shapes(2, (2, 3, 5, 7)).flatmap(lambda shape: arrays(shape, values="mixed")))
def test_arrays_with_zeros_and_ties_do_not_fail_a_right_backward_pass(x: Array) -> None:
    for name in ("relu, 0 at 0", "leaky relu", "abs", "clip", "max"):
        assert gradcheck(*RIGHT[name], x)


def pairs(x: Array) -> Any:
    a, b = x[..., ::2], x[..., 1::2]
    return np.where(a.real >= b.real, a, b), x


def first_of_pairs(dy: Array, x: Array) -> Array:
    first = x[..., ::2] >= x[..., 1::2]
    return np.stack([dy * first, dy * ~first], -1).reshape(x.shape)


def both_of_pairs(dy: Array, x: Array) -> Array:
    a, b = x[..., ::2], x[..., 1::2]
    return np.stack([dy * (a >= b), dy * (b >= a)], -1).reshape(x.shape)


@pytest.mark.parametrize("rows", [40, 130])
def test_a_wrong_gradient_at_thousands_of_kinks_fails(rows: int) -> None:
    x, zeros = np.maximum(normal(rows, 50), 0), np.zeros((rows, 50))
    report = gradcheck(pairs, both_of_pairs, x)
    assert not report
    assert "is a tie counted twice?" in str(report)
    assert gradcheck(pairs, first_of_pairs, x)
    report = gradcheck(relu, lambda dy, x: dy * (x > 0) + 1e6 * (x == 0), zeros)
    assert not report
    assert "which is not between them" in str(report)


def test_a_sample_of_the_kinks_verifies_not_the_others_and_the_report_says_so() -> None:
    report = gradcheck(*RIGHT["relu, 0 at 0"], np.zeros((60, 50)))
    assert report
    assert report.rows[0].verdict == "vacuous"
    assert "kinks among 3000 elements: 512 of these were tested, the others were not" in report.rows[0].note
    assert gradcheck(*RIGHT["relu, 0 at 0"], np.zeros((10, 50))).rows[0].verdict != "vacuous"


W, V = np.array([[1.0, -1.0]]), np.array([[1.0], [-2.0]])  # at x = 0 the one-sided derivatives are 1 and 2


def two_units(x: Array, bias: Array) -> Any:
    h = x @ W + bias
    mask = h.real > 0
    return (h * mask) @ V, mask


def two_units_backward(dy: Array, mask: Array, factor: float = 1.0) -> Any:
    d = factor * (dy @ V.T) * mask
    return d @ W.T, d.sum(axis=0)


def test_where_kinks_of_several_units_meet_a_limit_of_right_gradients_is_right() -> None:
    x, bias = np.array([[0.0], [0.7]]), np.zeros(2)
    report = gradcheck(two_units, two_units_backward, x, bias)
    assert report, str(report)
    assert "with the other arrays moved very little" in report.rows[0].note
    wrong = gradcheck(two_units, lambda dy, mask: two_units_backward(dy, mask, 1.01), x, bias)
    assert [row.verdict for row in wrong.rows] == ["FAILED", "FAILED"]
    assert "which is not between them" not in report.rows[0].note
    added = gradcheck(two_units, lambda dy, mask: (two_units_backward(dy, mask)[0] + 0.1, dy @ V.T * mask), x, bias)
    assert added.rows[0].verdict == "FAILED"


def mask_of(h: Array) -> Array:
    return h > 0


def two_near_0(h: Array) -> Array:
    return np.where(np.abs(h) < 1e-4 * np.abs(h).max(), 2.0, h > 0)


def with_ties(mask: Any) -> Any:
    def backward(dy: Array, x: Array) -> Array:
        m = mask(x)
        return dy[:, None] * m / m.sum(-1, keepdims=True)

    return backward


def test_a_gradient_at_a_kink_is_not_excused_by_a_wrong_one_beside_it() -> None:
    x = normal(5, 7)
    x[1, 2] = x[1, 4] = 3.0
    near = gradcheck(largest, lambda dy, x: dy[:, None] * np.isclose(x, x.max(-1, keepdims=True)), x)
    assert not near
    assert "is a tie counted twice?" in str(near)
    assert gradcheck(largest, first_largest, x)
    assert gradcheck(largest, with_ties(lambda x: x == x.max(-1, keepdims=True)), x)
    five = gradcheck(relu, lambda dy, x: dy * np.where(np.abs(x) < 1e-3, 5.0, x > 0), ZEROS)
    assert not five
    assert "accepted" not in str(five)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e4, 3e4])
def test_a_gradient_at_kinks_of_all_units_is_not_excused_by_a_wrong_one_beside_them(scale: float) -> None:
    def forward(x: Array, w: Array, b: Array, v: Array) -> Any:
        h = x @ w + b
        return (h * (h.real > 0)) @ v, (x, w, h, v)

    def backward(dy: Array, cache: Any, slope: Any) -> Any:
        x, w, h, v = cache
        dh = (dy @ v.T) * slope(h)
        return dh @ w.T, x.T @ dh, dh.sum(0), (h * (h > 0)).T @ dy

    x = scale * normal(5, 3)
    x[2] = 0
    arrays = x, normal(3, 7), np.zeros(7), normal(7, 2)
    for seed in range(3):
        right = gradcheck(forward, lambda dy, c: backward(dy, c, mask_of), *arrays, seed=seed)
        assert right, str(right)
        wrong = gradcheck(forward, lambda dy, c: backward(dy, c, two_near_0), *arrays, seed=seed)
        assert [row.verdict for row in wrong.rows] == ["FAILED", "ok", "FAILED", "ok"], str(wrong)


def test_of_several_outputs_the_report_shows_the_interval_that_is_accepted() -> None:
    def two_sides(x: Array) -> Any:
        return np.stack([np.maximum(x, 0), np.maximum(-x, 0)]), x

    upstream = np.array([[1.0] * 3, [-1.0] * 3])  # the sums of the derivatives on both sides are 1
    report = gradcheck(two_sides, lambda dy, x: dy[0] * (x >= 0) - dy[1] * (x <= 0), np.zeros(3), upstream=upstream)
    words = (
        "the sums of the smaller and of the larger one-sided derivatives are 0 and 2, backward gives 2, which is acc"
    )
    assert report
    assert words in report.rows[0].note


def test_many_kinks_are_advised_against() -> None:
    x = np.zeros((60, 50))
    x[:, :20] = normal(60, 20)
    assert gradcheck(*RIGHT["relu, 0 at 0"], x).advice == "Check at random values: many elements of x are at kinks."
    assert not gradcheck(*RIGHT["relu, 0 at 0"], normal(60, 50)).advice
