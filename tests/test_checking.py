"""The gradient check passes right backward passes, fails wrong ones by every method, and explains their errors."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from small_passes import (
    B,
    W,
    X,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    norm,
    norm_backward,
    normal,
    self_sum,
    self_sum_backward,
    square_matrix,
    square_matrix_backward,
    tanh,
    tanh_backward,
)

from minivit import ops
from minivit.arrays import Array
from minivit.checking import gradcheck

RIGHT: dict[str, tuple[Any, Any, tuple[Array, ...]]] = {
    "linear": (linear, linear_backward, (normal(7, 5), normal(5, 3), normal(3))),
    "tanh": (tanh, tanh_backward, (normal(7, 5),)),
    "tanh at zero": (tanh, tanh_backward, (np.zeros((3, 2)),)),
    "x * sum(x)": (self_sum, self_sum_backward, (normal(5, 3),)),
    "layer norm": (norm, norm_backward, (normal(3, 11), normal(11))),
    "a @ a": (square_matrix, square_matrix_backward, (normal(5, 5),)),
    "scalar": (lambda x: (np.asarray(x * x), x), lambda dy, x: np.asarray(2 * x * dy), (np.asarray(0.7),)),
    "relu": (lambda x: (np.where(x.real > 0, x, 0), x), lambda dy, x: dy * (x > 0), (normal(7, 5),)),
    "close to zero": (tanh, tanh_backward, (1e-6 * normal(7, 5),)),
    "far from zero": (norm, norm_backward, (1e4 + normal(3, 11), normal(11))),
    "100 x 1000": (tanh, tanh_backward, (normal(100, 1000),)),
    "empty": (tanh, tanh_backward, (np.zeros((0, 3)),)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_pass_passes(name: str) -> None:
    forward, backward, arrays = RIGHT[name]
    report = gradcheck(forward, backward, *arrays)
    assert report.passed, str(report)
    assert report.max_error <= 1e-11
    for row in report.rows:
        assert row.verdict in ("ok", "zero")
        if name not in ("tanh at zero", "empty"):
            assert row.slope == "linear" or row.slope == pytest.approx(2, abs=0.05), str(report)


@pytest.mark.parametrize("method", ["complex", "taylor", "central"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_pass_passes_by_each_method(name: str, method: Any) -> None:
    forward, backward, arrays = RIGHT[name]
    report = gradcheck(forward, backward, *arrays, method=method)
    assert report.passed, str(report)
    assert all(row.method == method for row in report.rows)


def one_element(dy: Array, y: Array) -> Any:
    dx = tanh_backward(dy, y)
    dx[17, 32] *= 1.5
    return dx


LINEAR = linear, (X, W, B)

# name: the forward pass and its arrays, a wrong backward pass, the row that must fail, and a part of its explanation
WRONG: dict[str, tuple[tuple[Any, tuple[Array, ...]], Any, str, str]] = {
    "sign": (LINEAR, lambda dy, c: (-dy @ c[1].T, c[0].T @ dy, dy.sum(0)), "x", "a sign is flipped"),
    "factor": (LINEAR, lambda dy, c: (dy @ c[1].T, 2 * c[0].T @ dy, dy.sum(0)), "weight", "2 times the derivative"),
    "sign and factor": (
        LINEAR,
        lambda dy, c: (dy @ c[1].T, -0.3 * c[0].T @ dy, dy.sum(0)),
        "weight",
        "a sign is flipped and everywhere 0.3 times",
    ),
    "mean for sum": (
        LINEAR,
        lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy.mean(0)),
        "bias",
        "one over the length of axis 0",
    ),
    "sum for mean": (
        (lambda x: (x.mean(0), x.shape[0]), (X,)),
        lambda dy, n: np.broadcast_to(dy, (n, 5)),
        "x",
        "length of axis 0 of the array): a sum where forward takes a mean",
    ),
    "not summed over the batch": (
        LINEAR,
        lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy[2]),
        "bias",
        "only from index 2 of the output's axis 0: not summed",
    ),
    "one sample's weight": (
        LINEAR,
        lambda dy, c: (dy @ c[1].T, np.outer(c[0][-1], dy[-1]), dy.sum(0)),
        "weight",
        "only from index 6 of the output's axis 0: not summed",
    ),
    "transposed": (
        (square_matrix, (normal(5, 5),)),
        lambda dy, a: square_matrix_backward(dy, a).T,
        "a",
        "axes 0 and 1 are swapped",
    ),
    "reshaped": (
        LINEAR,
        lambda dy, c: (dy @ c[1].T, (dy.T @ c[0]).reshape(5, 3), dy.sum(0)),
        "weight",
        "reshaped where it should be transposed",
    ),
    "missing term": ((self_sum, (normal(5, 3),)), lambda dy, x: dy * x.sum(), "x", "worst at"),
    "layer norm without the mean": (
        (norm, (normal(3, 11), normal(11))),
        lambda dy, c: (c[1] * (dy * c[2] - c[0] * (dy * c[2] * c[0]).mean(-1, keepdims=True)), (dy * c[0]).sum(0)),
        "x",
        "worst at",
    ),
    "another function": ((tanh, (X,)), lambda dy, y: dy * y * (1 - y), "x", "worst at"),
    "detached": (
        LINEAR,
        lambda dy, c: (dy @ c[1].T, np.zeros_like(c[1]), dy.sum(0)),
        "weight",
        "returns zeros: the path to this array is cut",
    ),
    "all zero": ((tanh, (X,)), lambda dy, y: np.zeros_like(y), "x", "returns zeros"),
    "not an argument": (
        (lambda x, w: (np.tanh(x), (x, w)), (X, W)),
        lambda dy, c: (tanh_backward(dy, np.tanh(c[0])), c[1]),
        "w",
        "forward does not depend on this array",
    ),
    "one of ten thousand": ((tanh, (normal(100, 100),)), one_element, "x", "wrong at [17, 32]"),
    "one of six": (
        (tanh, (normal(2, 3),)),
        lambda dy, y: tanh_backward(dy, y) * [[1, 1, 3], [1, 1, 1]],
        "x",
        "1 of 6 elements is wrong",
    ),
    "a ten thousandth": ((tanh, (X,)), lambda dy, y: 1.0001 * tanh_backward(dy, y), "x", "1.0001 times"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_pass_fails_and_is_explained(name: str) -> None:
    (forward, arrays), backward, where, words = WRONG[name]
    report = gradcheck(forward, backward, *arrays)
    assert not report.passed
    assert [row.name for row in report.rows if row.verdict == "FAILED"] == [where]
    assert words in next(row.note for row in report.rows if row.name == where), str(report)


@pytest.mark.parametrize("method", ["complex", "taylor", "central"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_pass_fails_by_each_method(name: str, method: Any) -> None:
    (forward, arrays), backward, where, _ = WRONG[name]
    report = gradcheck(forward, backward, *arrays, method=method)
    assert [row.name for row in report.rows if row.verdict == "FAILED"] == [where], str(report)


@pytest.mark.parametrize("seed", range(20))
def test_a_wrong_gradient_has_slope_1_and_a_right_one_slope_2_for_every_seed(seed: int) -> None:
    forward, arrays = norm, (normal(3, 11, seed=seed), normal(11, seed=seed))
    right = gradcheck(forward, norm_backward, *arrays, seed=seed).rows[0]
    assert right.slope == pytest.approx(2, abs=0.05)
    wrong = gradcheck(forward, lambda dy, c: (1.001 * norm_backward(dy, c)[0], None), *arrays, seed=seed).rows[0]
    assert wrong.slope == pytest.approx(1, abs=0.05)


def test_float32_rounding_in_a_float64_pass_is_detected_by_the_complex_step() -> None:
    report = gradcheck(tanh, lambda dy, y: tanh_backward(dy, y).astype("f4").astype("f8"), X)
    assert not report.passed
    assert "float32 rounding" in report.rows[0].note


def test_the_worst_index_has_the_largest_difference() -> None:
    wrong = normal(7, 5, seed=1)
    report = gradcheck(tanh, lambda dy, y: tanh_backward(dy, y) + wrong, X)
    index = report.rows[0].worst_index
    assert index is not None
    assert abs(wrong[index]) == np.max(np.abs(wrong))


def modulus(x: Array) -> Any:
    return np.abs(x) * x, x


def test_code_that_is_not_analytic_is_verified_by_central_differences() -> None:
    report = gradcheck(modulus, lambda dy, x: 2 * np.abs(x) * dy, X)
    assert report.passed
    assert report.rows[0].method == "central"
    assert "not analytic" in report.rows[0].note
    assert not gradcheck(modulus, lambda dy, x: np.abs(x) * dy, X).passed


def unit(x: Array) -> Any:
    n = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / n, (x / n, n)


def unit_backward(dy: Array, cache: Any) -> Any:
    y, n = cache
    return (dy - y * (dy * y).sum(-1, keepdims=True)) / n


@pytest.mark.parametrize("factor", [2, 0.25, 3])
def test_a_wrong_gradient_of_code_that_is_not_analytic_is_explained_by_central_differences(factor: float) -> None:
    assert gradcheck(unit, unit_backward, X)
    for forward, backward in ((modulus, lambda dy, x: 2 * np.abs(x) * dy), (unit, unit_backward)):
        report = gradcheck(forward, lambda dy, c, backward=backward: factor * backward(dy, c), X)  # type: ignore[misc]  # a default binds the loop variable
        assert report.rows[0].verdict == "FAILED"
        assert report.rows[0].method == "central"
        assert "not analytic" in report.rows[0].note
        assert f"everywhere {factor:g} times the derivative" in report.rows[0].note


def test_a_wrong_gradient_of_analytic_code_is_measured_by_the_complex_step() -> None:
    for forward, slope in (
        (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
        (lambda x: 100 + 1e-9 * np.tanh(x), lambda x: 1e-9 * (1 - np.tanh(x) ** 2)),
        (lambda x: np.sin(1e7 * x), lambda x: 1e7 * np.cos(1e7 * x)),
    ):
        report = gradcheck(lambda x, f=forward: (f(x), x), lambda dy, x, slope=slope: 2 * dy * slope(x), X)  # type: ignore[misc]  # a default binds the loop variable
        assert report.rows[0].method == "complex"
        assert "not analytic" not in report.rows[0].note


def refuses_complex(x: Array) -> Any:
    if np.iscomplexobj(x):
        raise TypeError("real arrays only")
    return np.tanh(x), np.tanh(x)


def drops_imaginary_part(x: Array) -> Any:
    y = np.empty(x.shape)
    y[...] = np.tanh(x)
    return y, y


def takes_real_part(x: Array) -> Any:
    return np.tanh(x.real), np.tanh(x.real)


@pytest.mark.parametrize("forward", [refuses_complex, drops_imaginary_part, takes_real_part])
def test_functions_of_real_arrays_only_are_verified_by_central_differences(forward: Any) -> None:
    right = gradcheck(forward, tanh_backward, X)
    assert right.passed
    assert right.rows[0].method == "central"
    assert right.rows[0].error < 1e-8
    assert not gradcheck(forward, lambda dy, y: 1.00001 * tanh_backward(dy, y), X).passed
    assert not gradcheck(forward, tanh_backward, X, method="complex").passed


def test_central_differences_do_not_accept_a_small_error_of_an_analytic_function() -> None:
    report = gradcheck(tanh, lambda dy, y: (1 + 1e-8) * tanh_backward(dy, y), X)
    assert not report.passed
    assert report.rows[0].method == "complex"


def test_a_complex_path_that_computes_another_function_is_detected() -> None:
    def other_if_complex(x: Array) -> Any:
        return (np.tanh(x) if np.iscomplexobj(x) else np.sin(x)), x

    report = gradcheck(other_if_complex, lambda dy, x: dy * (1 - np.tanh(x) ** 2), X)
    assert not report.passed
    assert "forward computes two different things" in report.rows[0].note


def test_a_point_with_almost_no_curvature_passes() -> None:
    cubic = gradcheck(lambda x: (x * x * x, x), lambda dy, x: 3 * x * x * dy, np.zeros((3, 2)))
    assert cubic.passed
    tails = np.array([-9.0, 7.5, -6.0, 40.0])  # tanh is constant to 11 digits here
    report = gradcheck(tanh, tanh_backward, tails)
    assert report.passed, str(report)


def shifted_softmax(x: Array, shift: Array) -> Any:
    e = np.exp(x + shift - (x + shift).real.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, p


def shifted_softmax_backward(dy: Array, p: Array) -> Any:
    dx = p * (dy - (dy * p).sum(-1, keepdims=True))
    return dx, dx.sum(-1, keepdims=True)


def test_a_gradient_that_is_zero_by_symmetry_has_the_verdict_zero() -> None:
    report = gradcheck(shifted_softmax, shifted_softmax_backward, normal(3, 7), normal(3, 1))
    assert [row.verdict for row in report.rows] == ["ok", "zero"]
    wrong = gradcheck(
        shifted_softmax,
        lambda dy, p: (shifted_softmax_backward(dy, p)[0], 1e-6 * dy[:, :1]),
        normal(3, 7),
        normal(3, 1),
    )
    assert [row.verdict for row in wrong.rows] == ["ok", "FAILED"]


def test_a_tolerance_larger_than_the_gradient_is_called_vacuous() -> None:
    def faint(x: Array, w: Array) -> Any:
        return np.tanh(x) + 1e-10 * np.tanh(w), (np.tanh(x), np.tanh(w))

    def faint_backward(dy: Array, cache: Any) -> Any:
        return tanh_backward(dy, cache[0]), 1e-10 * tanh_backward(dy, cache[1])

    by_central = gradcheck(faint, faint_backward, X, normal(7, 5, seed=1), method="central")
    assert [row.verdict for row in by_central.rows] == ["ok", "vacuous"]
    assert "would pass" in by_central.rows[1].note
    assert "1 note above" in by_central.summary()
    by_complex = gradcheck(faint, faint_backward, X, normal(7, 5, seed=1))
    assert [row.verdict for row in by_complex.rows] == ["ok", "ok"]


def test_a_check_whose_gradients_are_all_zero_advises_another_point() -> None:
    report = gradcheck(lambda x: (x * 0, x), lambda dy, x: dy * 0, X)
    assert report.rows[0].verdict == "zero"
    assert "verifies little" in str(report)


def test_arguments_whose_elements_are_equal_are_advised_against() -> None:
    def affine(x: Array, w: Array, b: Array) -> Any:
        return x * w + b, (x, w)

    def without_factor(dy: Array, cache: Any) -> Any:
        return dy * 1.0, (dy * cache[0]).sum(0), dy.sum(0)

    report = gradcheck(affine, without_factor, X, np.ones(5), np.zeros(5))
    assert report
    assert report.advice == (
        "w is 1 everywhere: a missing factor w would pass; b is 0 everywhere: a missing term b would pass; check at "
        "random values"
    )
    assert "another order of the elements of x" in gradcheck(tanh, tanh_backward, np.full((3, 2), 0.5)).advice
    assert not gradcheck(tanh, tanh_backward, X).advice
    assert not gradcheck(tanh, tanh_backward, np.ones((1, 1)) / 2).advice


def test_integer_arrays_have_no_row_and_their_gradients_may_be_left_out() -> None:
    index = np.array([0, 2, 2])

    def rows(table: Array, index: Array) -> Any:
        return table[index], (table, index)

    def scatter(dy: Array, cache: Any) -> Any:
        dtable = np.zeros_like(cache[0])
        np.add.at(dtable, cache[1], dy)
        return dtable

    for backward in (scatter, lambda dy, cache: (scatter(dy, cache), None)):
        report = gradcheck(rows, backward, normal(5, 3), index)
        assert report.passed
        assert [row.name for row in report.rows] == ["table"]


def test_float32_arrays_are_verified_in_float64_and_then_compared() -> None:
    report = gradcheck(linear, linear_backward, *(a.astype("f4") for a in (X, W, B)))
    assert report.passed
    assert [(row.name, row.method) for row in report.rows] == [
        (name, method) for method in ("complex", "float32") for name in ("x", "weight", "bias")
    ]
    assert report.max_error < 1e-14
    assert all(1e-9 < row.error < 1e-6 for row in report.rows[3:])


def test_a_backward_pass_that_is_wrong_in_float32_only_fails() -> None:
    def backward(dy: Array, y: Array) -> Any:
        return tanh_backward(dy, y) * (np.float32(1.001) if dy.dtype == np.float32 else 1)

    report = gradcheck(tanh, backward, X.astype("f4"))
    assert [row.verdict for row in report.rows] == ["ok", "FAILED"]
    assert "in float32" in report.rows[1].note


def test_the_same_seed_gives_the_same_report() -> None:
    first, second = (gradcheck(norm, norm_backward, normal(3, 11), normal(11), seed=3) for _ in range(2))
    assert first == second


def test_the_check_needs_neither_rich_nor_hypothesis() -> None:
    code = "import sys, minivit.checking, minivit.testing; print({'rich', 'hypothesis'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_right_backward_pass_of_a_saturated_function_passes_and_says_that_nothing_is_verified(dtype: str) -> None:
    def cross_entropy(logits: Array) -> Any:
        return ops.cross_entropy(logits, np.arange(4))

    for size in (15, 20, 50):
        report = gradcheck(cross_entropy, ops.cross_entropy_backward, (size * np.eye(4)).astype(dtype))
        assert report, str(report)
        assert "forward is saturated here" in report.rows[0].note
        assert not gradcheck(cross_entropy, lambda dy, c: 2 * ops.cross_entropy_backward(dy, c), size * np.eye(4))


@pytest.mark.parametrize("size", [5, 15, 20])
def test_zeros_in_place_of_the_gradient_of_a_saturated_function_fail(size: int) -> None:
    def cross_entropy(logits: Array) -> Any:
        return ops.cross_entropy(logits, np.arange(4))

    def zeros(dy: Array, cache: Any) -> Array:
        return 0 * ops.cross_entropy_backward(dy, cache)

    assert not gradcheck(cross_entropy, zeros, size * np.eye(4))


def test_a_gradient_that_is_rounding_at_every_point_is_zero() -> None:
    def sum_of_softmax(x: Array) -> Any:
        y, cache = ops.softmax(x)
        return y.sum(-1), cache

    def backward(dy: Array, cache: Any) -> Array:
        return ops.softmax_backward(np.repeat(dy[:, None], 5, axis=1), cache)

    for seed in range(8):  # of some the sum, and so the gradient, is 0 to the last digit
        rows = gradcheck(sum_of_softmax, backward, normal(4, 5), seed=seed).rows
        assert [row.verdict for row in rows] == ["zero"]
    assert not gradcheck(lambda x: (1e-30 * x, x), lambda dy, x: 2e-30 * dy, normal(4))


SEED_0 = np.random.default_rng(0).standard_normal((5, 6))


@pytest.mark.parametrize("backward", [lambda dy, x: x * x, lambda dy, x: dy * dy])
def test_a_backward_pass_that_exchanges_dy_and_x_fails_where_a_user_draws_x_with_the_same_seed(backward: Any) -> None:
    def half_square(x: Array) -> tuple[Array, Array]:
        return x * x / 2, x

    assert gradcheck(half_square, lambda dy, x: dy * x, SEED_0).passed
    assert not gradcheck(half_square, backward, SEED_0).passed


@pytest.mark.parametrize(
    "dbias",
    [lambda dy: 1e-20 * dy.sum(axis=0), lambda dy: (dy - dy.mean(axis=0)).sum(axis=0), lambda dy: 0 * dy.sum(axis=0)],
    ids=["tiny", "rounding", "zero"],
)
def test_a_gradient_of_nearly_nothing_fails_beside_larger_ones(dbias: Any) -> None:
    def backward(dy: Array, cache: Any) -> tuple[Array, ...]:
        dx, dweight, _ = linear_backward(dy, cache)
        return dx, dweight, dbias(dy)

    arrays = normal(128, 16), normal(16, 12), normal(12)
    assert gradcheck(linear, linear_backward, *arrays).passed
    report = gradcheck(linear, backward, *arrays)
    assert [row.verdict for row in report.rows] == ["ok", "ok", "FAILED"]


def test_a_gradient_that_is_cut_off_beside_a_larger_one_is_not_called_saturated() -> None:
    def forward(x: Array, z: Array) -> tuple[Array, Array]:
        y = np.tanh(x)
        return y + z, y

    def backward(dy: Array, y: Array) -> tuple[Array, Array]:
        return np.where(np.abs(y) > np.tanh(3), 1e-20, dy * (1 - y * y)), dy

    assert not gradcheck(forward, backward, np.linspace(-6, 6, 20), normal(20)).passed


@pytest.mark.parametrize("share", [1e-3, 1e-5, 1e-6])
def test_a_small_term_that_is_not_analytic_is_verified_by_central_differences(share: float) -> None:
    def forward(x: Array) -> tuple[Array, Array]:
        return x * x + share * np.abs(x), x

    report = gradcheck(forward, lambda dy, x: dy * (2 * x + share * np.sign(x)), SEED_0)
    assert report.passed, str(report)
    assert report.rows[0].method == "central"
    assert not gradcheck(forward, lambda dy, x: dy * 2 * x, SEED_0).passed


def test_a_function_that_refuses_some_values_is_verified_at_those_it_takes() -> None:
    def log_of_positive(x: Array) -> tuple[Array, Array]:
        if not (x.real > 0).all():
            raise ValueError("x must be positive")
        return np.log(x), x

    x = np.abs(normal(9)) + 0.1
    assert gradcheck(log_of_positive, lambda dy, x: dy / x, x).passed
    assert not gradcheck(log_of_positive, lambda dy, x: 1.001 * dy / x, x).passed


def test_a_point_at_the_end_of_the_domain_is_no_state_outside_of_the_cache() -> None:
    def log_of_probability(p: Array) -> tuple[Array, Array]:
        if (p.real > 1).any():
            raise ValueError("probabilities are at most 1")
        return np.log(p), p

    probabilities = np.array([0.2, 0.5, 1.0])
    assert gradcheck(log_of_probability, lambda dy, p: dy / p, probabilities, method="complex").passed


def test_a_right_gradient_passes_at_an_element_far_smaller_than_the_others() -> None:
    def log(p: Array) -> Any:
        return np.log(p), p

    for tiny in (1e-17, 1e-22, 1e-60):
        report = gradcheck(log, lambda dy, p: dy / p, np.array([0.9, 0.1, tiny, 3e-4]))
        assert report, str(report)
        assert not gradcheck(log, lambda dy, p: (1 + 1e-9) * dy / p, np.array([0.9, 0.1, tiny, 3e-4]))

    def direction(x: Array) -> Any:
        n = np.sqrt((x * x).sum(-1, keepdims=True))
        return x / n, (x / n, n)

    assert gradcheck(direction, unit_backward, 1e-16 * normal(5, 7))


def test_a_remainder_that_falls_fast_is_explained_by_the_second_derivative() -> None:
    steep = gradcheck(
        lambda x: (np.tanh(1e5 * x), x),
        lambda dy, x: 1e5 * dy * (1 - np.tanh(1e5 * x) ** 2),
        np.array([0.0, 0.5, -2.0]),
    )
    assert steep
    assert steep.rows[0].note.endswith("along the direction is small beside the higher ones here")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("offset", [1e5, 1e6, 1e7])
def test_an_offset_far_larger_than_the_spread_is_no_kink_and_no_error(offset: float, seed: int) -> None:
    arrays = offset + normal(3, 5, seed=seed), normal(5, seed=seed)
    report = gradcheck(norm, norm_backward, *arrays, seed=seed)
    assert report, str(report)
    assert "kink" not in str(report)
    assert report.max_error < 1e-8
    for factor in (1.001, 1 + 2e-8):
        wrong = gradcheck(norm, lambda dy, c, f=factor: tuple(f * d for d in norm_backward(dy, c)), *arrays, seed=seed)  # type: ignore[misc]  # as above
        assert not wrong
        assert "kink" not in str(wrong)


def test_an_error_larger_than_the_rounding_of_the_arrays_fails() -> None:
    for offset, factor in ((0, 1 + 3e-11), (1e6, 1 + 9e-9)):
        arrays = offset + normal(3, 5), normal(5)
        assert not gradcheck(norm, lambda dy, c, f=factor: tuple(f * d for d in norm_backward(dy, c)), *arrays)  # type: ignore[misc]  # as above


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: (x / np.std(x, -1, keepdims=True), x),
        lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True), x),
        lambda x: (np.abs(x), x),
    ],
)
def test_functions_that_are_not_analytic_are_named(forward: Any) -> None:
    note = gradcheck(forward, lambda dy, x: dy, X).rows[0].note
    assert "np.abs, np.var, np.std and np.linalg.norm are not analytic" in note


def branch(size: float, low: float) -> Any:
    """Return ``x + size * tanh(w * x)`` with its backward pass, whose `w` has the factor `low` in float32."""

    def forward(x: Array, w: Array) -> Any:
        y = np.tanh(w * x)
        return x + size * y, (x, w, y)

    def backward(dy: Array, cache: Any) -> Any:
        x, w, y = cache
        d = size * dy * (1 - y * y)
        return dy + d * w, (d * x).sum(0) * (dy.dtype.type(low) if dy.dtype == np.float32 else 1)

    return forward, backward


@pytest.mark.parametrize(("size", "low", "verdict"), [(1e-6, 0, "vacuous"), (1e-6, 1, "ok"), (1e-3, 0, "FAILED")])
def test_a_gradient_that_is_zero_in_float32_only_is_not_called_zero(size: float, low: float, verdict: str) -> None:
    row = gradcheck(*branch(size, low), normal(3, 5).astype("f4"), normal(5).astype("f4")).rows[-1]
    assert (row.name, row.method, row.verdict) == ("w", "float32", verdict)
    assert ("verifies nothing" in row.note) == (verdict == "vacuous")


@pytest.mark.parametrize("seed", range(4))
def test_in_float32_an_offset_far_larger_than_the_spread_is_no_error(seed: int) -> None:
    x = (normal(3, 6, seed=seed) + 2e4).astype("f4")
    report = gradcheck(layer_norm, layer_norm_backward, x)
    assert report, str(report)
    assert "one unit in the last place of float32" in report.rows[1].note

    def wrong(dy: Array, cache: Any) -> Array:
        return layer_norm_backward(dy, cache) * (dy.dtype.type(1.05) if dy.dtype == np.float32 else 1)

    assert [row.verdict for row in gradcheck(layer_norm, wrong, x).rows] == ["ok", "FAILED"]


def test_what_makes_float64_of_float32_is_named() -> None:
    def scaled(x: Array, w: Array) -> Any:
        return x @ w, x

    def backward(dy: Array, x: Array) -> Array:
        return (x.T @ dy).astype(np.float32)

    wide = "in float32: forward returns float64 for float32 arguments: a NumPy scalar such as np.sqrt(d)"
    w = W.astype("f4")
    finding = gradcheck(scaled, backward, np.arange(2 * len(w)).reshape(2, -1), w).findings[-1]
    assert finding.startswith(wide)
    assert finding.endswith("; if forward computes with x, which is int64, use x.astype('float32')")
    finding = gradcheck(lambda x: (x * np.float64(2), x), lambda dy, x: (dy * 2).astype("f4"), w).findings[-1]
    assert finding.startswith(wide)
    assert finding.endswith("use math.sqrt(d), or x.dtype.type(...)")


@pytest.mark.parametrize("eps", [0.0, 1e-9, 1e-8])
def test_a_layer_norm_of_two_features_is_saturated_at_several_points(eps: float) -> None:
    forward = functools.partial(layer_norm, eps=eps)
    report = gradcheck(forward, layer_norm_backward, normal(4, 2))
    assert report, str(report)
    assert not gradcheck(forward, lambda dy, c: 1.5 * layer_norm_backward(dy, c), normal(4, 3))
