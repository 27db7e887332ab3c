"""The gradient check passes right backward passes, fails wrong ones by every method, and says what is wrong."""

import io
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import layers, ops
from minivit.arrays import Array
from minivit.checking import Report, Row, gradcheck, gradcheck_layer, gradcheck_model
from minivit.checking.judge import Settings


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def linear(x: Array, weight: Array, bias: Array) -> Any:
    return x @ weight + bias, (x, weight)


def linear_backward(dy: Array, cache: Any) -> Any:
    x, weight = cache
    return dy @ weight.T, x.T @ dy, dy.sum(0)


def tanh(x: Array) -> Any:
    y = np.tanh(x)
    return y, y


def tanh_backward(dy: Array, y: Array) -> Any:
    return dy * (1 - y * y)


def self_sum(x: Array) -> Any:
    return x * x.sum(), x


def self_sum_backward(dy: Array, x: Array) -> Any:
    return dy * x.sum() + np.sum(dy * x)


def norm(x: Array, weight: Array) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    inv = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-6)
    return centred * inv * weight, (centred * inv, inv, weight)


def norm_backward(dy: Array, cache: Any) -> Any:
    x_hat, inv, weight = cache
    d = dy * weight
    dx = inv * (d - d.mean(-1, keepdims=True) - x_hat * (d * x_hat).mean(-1, keepdims=True))
    return dx, (dy * x_hat).sum(0)


def square_matrix(a: Array) -> Any:
    return a @ a, a


def square_matrix_backward(dy: Array, a: Array) -> Any:
    return dy @ a.T + a.T @ dy


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
    dx[17, 33] *= 1.5
    return dx


X, W, B = normal(7, 5), normal(5, 3), normal(3)
LINEAR = linear, (X, W, B)

# name: the forward pass and where, a wrong backward pass, the wrong row, and words of the explanation
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
    "one of ten thousand": ((tanh, (normal(100, 100),)), one_element, "x", "worst at [17, 33]"),
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
def test_a_wrong_gradient_has_slope_1_and_a_right_one_2_whatever_the_seed(seed: int) -> None:
    forward, arrays = norm, (normal(3, 11, seed=seed), normal(11, seed=seed))
    right = gradcheck(forward, norm_backward, *arrays, seed=seed).rows[0]
    assert right.slope == pytest.approx(2, abs=0.05)
    wrong = gradcheck(forward, lambda dy, c: (1.001 * norm_backward(dy, c)[0], None), *arrays, seed=seed).rows[0]
    assert wrong.slope == pytest.approx(1, abs=0.05)


def test_float32_rounding_in_a_float64_pass_is_seen_by_the_complex_step() -> None:
    report = gradcheck(tanh, lambda dy, y: tanh_backward(dy, y).astype("f4").astype("f8"), X)
    assert not report.passed
    assert "float32 rounding" in report.rows[0].note


def test_the_worst_index_is_that_of_the_largest_difference() -> None:
    wrong = normal(7, 5, seed=1)
    report = gradcheck(tanh, lambda dy, y: tanh_backward(dy, y) + wrong, X)
    index = report.rows[0].worst_index
    assert index is not None
    assert abs(wrong[index]) == np.max(np.abs(wrong))


def modulus(x: Array) -> Any:
    return np.abs(x) * x, x


def test_code_that_is_not_analytic_is_judged_by_central_differences() -> None:
    report = gradcheck(modulus, lambda dy, x: 2 * np.abs(x) * dy, X)
    assert report.passed
    assert report.rows[0].method == "central"
    assert "not analytic" in report.rows[0].note
    assert not gradcheck(modulus, lambda dy, x: np.abs(x) * dy, X).passed


def refuses(x: Array) -> Any:
    if np.iscomplexobj(x):
        raise TypeError("real arrays only")
    return np.tanh(x), np.tanh(x)


def drops_imaginary_part(x: Array) -> Any:
    y = np.empty(x.shape)
    y[...] = np.tanh(x)
    return y, y


def takes_real_part(x: Array) -> Any:
    return np.tanh(x.real), np.tanh(x.real)


@pytest.mark.parametrize("forward", [refuses, drops_imaginary_part, takes_real_part])
def test_functions_of_real_arrays_alone_are_judged_by_central_differences(forward: Any) -> None:
    right = gradcheck(forward, tanh_backward, X)
    assert right.passed
    assert right.rows[0].method == "central"
    assert right.rows[0].error < 1e-8
    assert not gradcheck(forward, lambda dy, y: 1.00001 * tanh_backward(dy, y), X).passed
    assert not gradcheck(forward, tanh_backward, X, method="complex").passed


def test_central_differences_excuse_no_small_error_of_an_analytic_function() -> None:
    report = gradcheck(tanh, lambda dy, y: (1 + 1e-8) * tanh_backward(dy, y), X)
    assert not report.passed
    assert report.rows[0].method == "complex"


def test_a_complex_path_that_is_another_function_than_the_real_one_is_found() -> None:
    def two_faced(x: Array) -> Any:
        return (np.tanh(x) if np.iscomplexobj(x) else np.sin(x)), x

    report = gradcheck(two_faced, lambda dy, x: dy * (1 - np.tanh(x) ** 2), X)
    assert not report.passed
    assert "forward computes two different things" in report.rows[0].note


def test_a_point_with_hardly_any_curvature_is_no_failure() -> None:
    cubic = gradcheck(lambda x: (x * x * x, x), lambda dy, x: 3 * x * x * dy, np.zeros((3, 2)))
    assert cubic.passed
    tails = np.array([-9.0, 7.5, -6.0, 40.0])  # tanh is flat to 11 digits and bends only far from here
    report = gradcheck(tanh, tanh_backward, tails)
    assert report.passed, str(report)


def shifted_softmax(x: Array, shift: Array) -> Any:
    e = np.exp(x + shift - (x + shift).real.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, p


def shifted_softmax_backward(dy: Array, p: Array) -> Any:
    dx = p * (dy - (dy * p).sum(-1, keepdims=True))
    return dx, dx.sum(-1, keepdims=True)


def test_a_gradient_that_is_zero_by_symmetry_has_a_verdict_of_its_own() -> None:
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


def test_a_case_whose_gradients_are_all_zero_says_that_it_proves_little() -> None:
    report = gradcheck(lambda x: (x * 0, x), lambda dy, x: dy * 0, X)
    assert report.rows[0].verdict == "zero"
    assert "proves little" in str(report)


class TestContracts:
    """What forward and backward promise; each breach is words in the report and never an exception."""

    def finding(self, forward: Any, backward: Any, *arrays: Array) -> str:
        report = gradcheck(forward, backward, *arrays)
        assert not report.passed
        return " ".join([*report.findings, *(row.note for row in report.rows if row.note)])

    def test_backward_writes_to_dy(self) -> None:
        def backward(dy: Array, y: Array) -> Any:
            dy *= 1 - y * y
            return dy

        assert self.finding(tanh, backward, X) == "backward writes to dy"

    def test_backward_writes_to_its_cache(self) -> None:
        def backward(dy: Array, y: Array) -> Any:
            y *= -y
            y += 1
            return dy * y

        assert "backward writes to its cache" in self.finding(tanh, backward, X)

    def test_backward_empties_its_cache(self) -> None:
        def backward(dy: Array, cache: list[Array]) -> Any:
            return tanh_backward(dy, cache.pop())

        assert "raises IndexError" in self.finding(lambda x: (np.tanh(x), [np.tanh(x)]), backward, X)

    def test_forward_writes_to_its_arguments(self) -> None:
        def forward(x: Array) -> Any:
            x += 1
            return np.tanh(x), np.tanh(x)

        x = X.copy()
        assert "writes to its arguments" in self.finding(forward, tanh_backward, x)
        np.testing.assert_array_equal(x, X)

    def test_backward_reads_state_outside_its_cache(self) -> None:
        class Stateful:
            def forward(self, x: Array) -> Any:
                self.y = np.tanh(x)
                return self.y, None

            def backward(self, dy: Array, cache: None) -> Any:
                return tanh_backward(dy, self.y)

        layer = Stateful()
        assert "state outside its cache" in self.finding(layer.forward, layer.backward, X)

    def test_forward_is_random(self) -> None:
        generator = np.random.default_rng(0)
        finding = self.finding(lambda x: (x * generator.random(x.shape), x), lambda dy, x: dy, X)
        assert "fix its randomness" in finding

    def test_too_few_gradients(self) -> None:
        finding = self.finding(linear, lambda dy, c: linear_backward(dy, c)[:2], X, W, B)
        assert "a gradient count of 2; 3 expected" in finding
        assert "no gradient for this array" in finding

    def test_too_many_gradients(self) -> None:
        assert "a gradient count of 2; 1 expected" in self.finding(tanh, lambda dy, y: (tanh_backward(dy, y), dy), X)

    def test_nan(self) -> None:
        def backward(dy: Array, y: Array) -> Any:
            dx = tanh_backward(dy, y)
            dx[2, 3] = np.nan
            return dx

        assert "the gradient is nan at [2, 3]" in self.finding(tanh, backward, X)

    def test_float32_gradient_of_a_float64_array(self) -> None:
        finding = self.finding(tanh, lambda dy, y: tanh_backward(dy, y).astype("f4"), X)
        assert finding == "the gradient is float32, the array float64"

    def test_float64_gradient_of_a_float32_array(self) -> None:
        leak = np.ones((), np.float64)
        finding = self.finding(tanh, lambda dy, y: dy * (leak - y * y), X.astype("f4"))
        assert finding == "the gradient is float64, the array float32"

    def test_float64_result_of_float32_arrays(self) -> None:
        def forward(x: Array) -> Any:
            return x + np.zeros(x.shape), x

        assert "in float32: forward returns float64" in self.finding(
            forward, lambda dy, x: dy.astype(x.dtype), X.astype("f4")
        )

    def test_a_number_instead_of_an_array(self) -> None:
        assert "returns a float, not an array" in self.finding(lambda x: (x.sum(), x), lambda dy, x: 1.0, X)

    def test_shapes_are_read(self) -> None:
        assert "looks not summed over its axis 0" in self.finding(
            linear, lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy), X, W, B
        )
        assert "looks transposed" in self.finding(linear, lambda dy, c: (dy @ c[1].T, dy.T @ c[0], dy.sum(0)), X, W, B)

    def test_a_gradient_that_is_not_computed_is_said_and_not_judged(self) -> None:
        report = gradcheck(linear, lambda dy, c: (None, *linear_backward(dy, c)[1:]), X, W, B)
        assert report.passed
        assert [row.verdict for row in report.rows] == ["skipped", "ok", "ok"]
        assert "returns None" in str(report)


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


def test_float32_arrays_are_proved_in_float64_and_then_compared() -> None:
    report = gradcheck(linear, linear_backward, *(a.astype("f4") for a in (X, W, B)))
    assert report.passed
    assert [(row.name, row.method) for row in report.rows] == [
        (name, method) for method in ("complex", "float32") for name in ("x", "weight", "bias")
    ]
    assert report.max_error < 1e-14
    assert all(1e-9 < row.error < 1e-6 for row in report.rows[3:])


def test_a_backward_pass_that_is_wrong_in_float32_alone_fails() -> None:
    def backward(dy: Array, y: Array) -> Any:
        return tanh_backward(dy, y) * (np.float32(1.001) if dy.dtype == np.float32 else 1)

    report = gradcheck(tanh, backward, X.astype("f4"))
    assert [row.verdict for row in report.rows] == ["ok", "FAILED"]
    assert "in float32" in report.rows[1].note


def test_same_seed_same_report() -> None:
    first, second = (gradcheck(norm, norm_backward, normal(3, 11), normal(11), seed=3) for _ in range(2))
    assert first == second


def test_arguments_that_cannot_be_checked_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="x holds NaN"):
        gradcheck(tanh, tanh_backward, np.array([1.0, np.nan]))
    with pytest.raises(TypeError, match="complex128"):
        gradcheck(tanh, tanh_backward, X + 1j)
    with pytest.raises(TypeError, match="no gradient to check"):
        gradcheck(tanh, tanh_backward, np.arange(3))
    with pytest.raises(TypeError, match=r"forward must return \(y, cache\)"):
        gradcheck(np.tanh, tanh_backward, X, names=["x"])
    with pytest.raises(ValueError, match="forward returns NaN"):
        gradcheck(lambda x: (x * np.inf, x), lambda dy, x: dy, X)
    with pytest.raises(ValueError, match="2 names for 1 arrays"):
        gradcheck(tanh, tanh_backward, X, names=["x", "y"])
    with pytest.raises(ValueError, match="unknown method 'complx'"):
        Settings(method="complx")  # type: ignore[arg-type]


class TestReport:
    report = gradcheck(linear, lambda dy, c: (dy @ c[1].T, -c[0].T @ dy, dy), X, W, B)

    def test_the_table_says_which_rows_are_wrong_and_how(self) -> None:
        lines = str(self.report).splitlines()
        assert lines[0] == "gradient check of linear"
        assert lines[2].endswith("norm    error   slope  method   verdict  worst index")
        assert [line.split()[0] for line in lines if not line.startswith(" ") and "complex" in line] == [
            "x",
            "weight",
            "bias",
        ]
        assert "    a sign is flipped" in lines
        assert lines[-1] == "FAILED: 2 of 3 gradients wrong"
        assert str(self.report).isascii()

    def test_a_failed_check_raises_with_the_table(self) -> None:
        with pytest.raises(AssertionError, match="a sign is flipped"):
            self.report.raise_if_failed()
        gradcheck(tanh, tanh_backward, X).raise_if_failed()

    def test_json_holds_it_all(self) -> None:
        data = json.loads(json.dumps(self.report.to_dict(), allow_nan=False))
        assert data["passed"] is False
        assert data["max_error"] is None
        assert [row["verdict"] for row in data["rows"]] == ["ok", "FAILED", "FAILED"]
        assert data["rows"][0]["shape"] == [7, 5]

    def test_rich_prints_the_same_lines(self) -> None:
        from rich.console import Console

        out = io.StringIO()
        self.report.print(Console(file=out, width=40))
        assert [line.rstrip() for line in out.getvalue().splitlines()] == str(self.report).splitlines()
        coloured = io.StringIO()
        self.report.print(Console(file=coloured, force_terminal=True, color_system="standard"))
        assert "\x1b[1;31mFAILED" in coloured.getvalue()

    def test_an_infinite_error_is_the_largest(self) -> None:
        assert self.report.max_error == math.inf

    def test_rows_are_told_one_by_one(self) -> None:
        told: list[tuple[str, int]] = []
        gradcheck(linear, linear_backward, X, W, B, on_row=lambda row, total: told.append((row.name, total)))
        assert told == [("x", 3), ("weight", 3), ("bias", 3)]


def block(dtype: str = "float64") -> layers.EncoderBlock:
    made = layers.EncoderBlock(6, 2, 7).initialize(seed=0, dtype=dtype)
    for k, parameter in enumerate(made.parameters.values()):
        parameter.value[...] += 0.3 * normal(*parameter.shape, seed=k)
    return made


def test_a_layer_is_proved_with_a_row_for_each_named_part() -> None:
    layer = block()
    before = layer.state_dict()
    report = gradcheck_layer(layer, normal(2, 5, 6))
    assert report.passed, str(report)
    assert report.max_error <= 1e-11
    verdicts = {row.full_name: row.verdict for row in report.rows}
    assert verdicts.pop("attn.qkv.bias[k]") == "zero"
    assert set(verdicts.values()) == {"ok"}
    assert list(verdicts)[:2] == ["x", "norm1.weight"]
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_a_layer_in_float32_is_compared_with_its_float64_self() -> None:
    report = gradcheck_layer(block("float32"), normal(2, 5, 6).astype("f4"))
    assert report.passed, str(report)
    assert sum(row.method == "float32" for row in report.rows) == len(report.rows) // 2


class Scale(minivit.Layer):
    def __init__(self) -> None:
        self.weight = minivit.Parameter((3,), lambda generator, shape: generator.standard_normal(shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return x * self.weight.value, x

    def backward(self, dy: Array, cache: Any) -> Array:
        self.weight.grad[...] = (dy * cache).sum(0)
        return dy * self.weight.value


def test_a_layer_that_sets_gradients_instead_of_adding_is_found() -> None:
    report = gradcheck_layer(Scale().initialize(seed=0, dtype="float64"), normal(5, 3))
    assert not report.passed
    assert "instead of adding to them: weight" in report.findings[0]


def tiny_model(**options: Any) -> minivit.ViT:
    sizes: dict[str, Any] = {"img_size": (6, 4), "patch_size": 2, "embed_dim": 6, "num_heads": 2, "num_classes": 3}
    model = minivit.ViT(minivit.ViTConfig(depth=2, mlp_ratio=2.0, **sizes, **options), seed=0, dtype="float64")
    for k, parameter in enumerate(model.parameters.values()):
        parameter.value[...] += 0.3 * normal(*parameter.shape, seed=k)
    return model


LABELS = np.array([2, 0])


def test_a_model_is_proved_from_loss_to_images() -> None:
    model = tiny_model()
    report = gradcheck_model(model, normal(2, 6, 4, 3), LABELS)
    assert report.passed, str(report)
    assert report.max_error <= 1e-11
    names = {row.full_name.partition("[")[0] for row in report.rows}
    assert names == {"images", *model.parameters}
    assert all(row.slope == "linear" or row.slope == pytest.approx(2, abs=0.05) for row in report.rows)


def test_a_model_in_training_mode_with_soft_targets_is_proved() -> None:
    model = tiny_model(drop_path_rate=0.3, proj_drop_rate=0.2)
    targets = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]], dtype=np.float32)
    key = minivit.Key(seed=1, step=2, sample_ids=np.arange(2))
    report = gradcheck_model(model.astype("float32"), normal(2, 6, 4, 3).astype("f4"), targets, rng=key)
    assert report.passed, str(report)


def test_in_a_wrong_model_the_layer_nearest_to_the_loss_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.layer_norm_backward

    def wrong(dy: Array, cache: Any) -> Any:
        dx, dweight, dbias = right(dy, cache)
        return dx, -dweight, dbias

    calls = {"attention": ops.attention_backward}

    def wrong_attention(dy: Array, cache: Any) -> Any:
        dqkv = calls["attention"](dy, cache).copy()
        dqkv[..., :6] *= 2
        return dqkv

    monkeypatch.setattr(ops, "attention_backward", wrong_attention)
    with ops.reference_only():
        report = gradcheck_model(tiny_model(), normal(2, 6, 4, 3), LABELS)
    failed = [row for row in report.rows if row.verdict == "FAILED"]
    assert failed[-1].full_name == "blocks.1.attn.qkv.bias[q]"
    assert "2 times the derivative" in failed[-1].note
    assert "Begin with blocks.1.attn.qkv" in str(report)
    assert not failed[0].note

    monkeypatch.setattr(ops, "attention_backward", calls["attention"])
    monkeypatch.setattr(ops, "layer_norm_backward", wrong)
    with ops.reference_only():
        report = gradcheck_model(tiny_model(), normal(2, 6, 4, 3), LABELS)
    assert {row.full_name for row in report.rows if row.verdict == "FAILED"} == {
        f"{name}.weight" for name in ("blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm")
    }


def test_rows_and_reports_cannot_be_changed() -> None:
    row = Row("", "x", (3,), 1.0, 0.0, 2.0, None, "ok", "complex")
    with pytest.raises(AttributeError):
        row.error = 1.0  # type: ignore[misc]
    assert Report("nothing", ()).passed


def test_the_check_needs_neither_rich_nor_hypothesis() -> None:
    code = "import sys, minivit.checking, minivit.testing; print({'rich', 'hypothesis'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "set()\n"
