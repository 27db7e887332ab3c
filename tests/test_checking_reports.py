"""The gradient check reports violated contracts, refuses invalid arguments, and prints its report."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any, cast

import numpy as np
import pytest
from small_passes import (
    B,
    W,
    X,
    linear,
    linear_backward,
    tanh,
    tanh_backward,
)

from minivit.arrays import Array
from minivit.checking import Report, Row, gradcheck
from minivit.checking.settings import Settings
from minivit.layers import GELU


class TestContracts:
    """A violated contract of forward or backward is a finding in the report and never an exception."""

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

    def test_the_arrays_in_the_cache_that_backward_changes_are_named(self) -> None:
        def forward(x: Array) -> Any:
            return np.tanh(x), {"x": x.copy(), "parts": (x.copy(), np.tanh(x))}

        def backward(dy: Array, cache: Any) -> Any:
            y = cache["parts"][1]
            y *= -y
            y += 1
            return dy * y

        finding = self.finding(forward, backward, X)
        assert "backward writes to its cache: it changes cache['parts'][1]" in finding

    def test_backward_is_random(self) -> None:
        generator = np.random.default_rng(0)
        finding = self.finding(tanh, lambda dy, y: tanh_backward(dy, y) * generator.random(y.shape), X)
        assert "backward writes to its cache, is random, or keeps state" in finding

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

    def test_the_pass_that_writes_to_an_argument_is_named_and_no_other_contract_is(self) -> None:
        def centred(x: Array) -> Any:
            x -= x.mean()
            return x**2, x

        def backward(dy: Array, x: Array) -> Any:
            return 2 * dy * x - (2 * dy * x).mean()

        advice = "compute `x = x - ...` instead of `x -= ...`"
        assert gradcheck(centred, backward, X).findings == (f"forward writes to its arguments (x): {advice}",)

        def wrong(dy: Array, x: Array) -> Any:
            x *= 2
            return dy * x

        report = gradcheck(lambda x: (x**2, x), wrong, X)
        assert report.findings == (f"backward writes to its arguments (x): {advice}",)
        assert [row.verdict for row in report.rows] == ["ok"]

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
        assert "backward returns 2 gradients; expected 3, one for each float array" in finding
        assert "no gradient for this array" in finding

    def test_too_many_gradients(self) -> None:
        assert "backward returns 2 gradients; expected 1, one for each float array" in self.finding(
            tanh, lambda dy, y: (tanh_backward(dy, y), dy), X
        )

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

    def test_a_wrong_shape_is_explained(self) -> None:
        assert "looks not summed over its axis 0" in self.finding(
            linear, lambda dy, c: (dy @ c[1].T, c[0].T @ dy, dy), X, W, B
        )
        assert "looks transposed" in self.finding(linear, lambda dy, c: (dy @ c[1].T, dy.T @ c[0], dy.sum(0)), X, W, B)

    def test_a_gradient_that_is_not_computed_is_skipped(self) -> None:
        report = gradcheck(linear, lambda dy, c: (None, *linear_backward(dy, c)[1:]), X, W, B)
        assert report.passed
        assert [row.verdict for row in report.rows] == ["skipped", "ok", "ok"]
        assert "returns None" in str(report)


def test_arguments_that_cannot_be_checked_are_refused() -> None:
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

    def test_the_table_shows_the_wrong_rows_with_explanations(self) -> None:
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

    def test_json_holds_the_whole_report(self) -> None:
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

    def test_on_row_is_called_for_each_row(self) -> None:
        calls: list[tuple[str, int]] = []
        gradcheck(linear, linear_backward, X, W, B, on_row=lambda row, total: calls.append((row.name, total)))
        assert calls == [("x", 3), ("weight", 3), ("bias", 3)]


def test_rows_and_reports_cannot_be_changed() -> None:
    row = Row("", "x", (3,), 1.0, 0.0, 2.0, None, "ok", "complex")
    with pytest.raises(AttributeError):
        row.error = 1.0  # type: ignore[misc]
    assert Report("nothing", ()).passed


def test_a_report_is_true_if_and_only_if_it_passed() -> None:
    assert gradcheck(tanh, tanh_backward, X)
    wrong = gradcheck(tanh, lambda dy, y: 2 * tanh_backward(dy, y), X)
    assert not wrong
    assert "FAILED: 1 of 1 gradient wrong (x)" in repr(wrong)
    assert not gradcheck(tanh, lambda dy, y: None, X)  # a forgotten return


def test_a_report_without_a_verified_gradient_says_so() -> None:
    skipped = Row("", "w", (3,), 0.0, 0.0, None, None, "skipped", "complex", "backward returns None")
    vacuous = Row("", "x", (3,), 1e-12, 0.0, None, None, "vacuous", "complex", "verifies nothing")
    assert Report("nothing", (vacuous, skipped)).summary() == "passed, but nothing was verified; 2 notes above"
    assert Report("x", (*gradcheck(tanh, tanh_backward, X).rows, skipped)).summary().startswith("passed: 1 gradient,")


def test_a_notebook_shows_the_table_and_escapes_names() -> None:
    report = gradcheck(tanh, lambda dy, y: -tanh_backward(dy, y), X, names=["<b>x\x1b"])
    html = report._repr_html_()
    assert all(words in html for words in ("<table>", "FAILED", "a sign is flipped", "&lt;b&gt;x\\x1b"))
    assert "<b>x" not in html


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("tol", "use tolerance="),
        ("rtol", "use tolerance="),
        ("eps", "no step size is needed"),
        ("raise_exception", "report.raise_if_failed"),
        ("nondet_tol", "always checked"),
        ("check_undefined_grad", "leave it out"),
        ("modes", "reverse mode"),
        ("verbose", "print"),
        ("direction", "did you mean 'directions'"),
        ("frobnicate", "frobnicate; the options are"),
    ],
)
def test_options_of_other_libraries_are_answered_with_the_right_name(option: str, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck(tanh, tanh_backward, X, **cast(Any, {option: 1}))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"tolerance": -1.0}, ValueError),
        ({"tolerance": float("nan")}, ValueError),
        ({"seed": 0.5}, TypeError),
        ({"directions": 0}, ValueError),
    ],
)
def test_values_of_options_are_checked(options: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        gradcheck(tanh, tanh_backward, X, **options)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(">f8"),
        lambda x: x.tolist(),
        np.asmatrix,
        np.asfortranarray,
        lambda x: np.ma.masked_array(x).filled(0),
        lambda x: np.broadcast_to(x, x.shape),
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    ],
)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_foreign_arrays_are_converted(convert: Any) -> None:
    assert gradcheck(tanh, tanh_backward, convert(X))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X.astype("f2"), "x is float16"),
        (np.ma.masked_array(X), "x is a masked array"),
        ((X, X), "x is a tuple of arrays; pass the arrays one by one"),
        ([[1.0], [1.0, 2.0]], "x is a list that makes no array"),
        ("text", "x: expected an array"),
        (None, "x: expected an array"),
    ],
)
def test_arrays_that_cannot_be_converted_are_refused_by_name(x: Any, words: str) -> None:
    with pytest.raises(TypeError, match=re.escape(words)):
        gradcheck(tanh, tanh_backward, x)


def test_a_call_for_a_layer_or_in_the_manner_of_another_library_is_told_the_right_one() -> None:
    with pytest.raises(TypeError, match=r"gradcheck_layer\(layer"):
        gradcheck(GELU(), X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backward is a tuple"):
        gradcheck(tanh, (X,))  # type: ignore[arg-type]


def test_float32_and_float64_arrays_together_are_checked_as_float32() -> None:
    report = gradcheck(linear, linear_backward, X, W.astype("f4"), B.astype("f4"))
    assert report, str(report)
    assert sum(row.method == "float32" for row in report.rows) == 3
