"""The gradient check after a small change of parameters: arrays of earlier values, values that hide a mistake."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_passes import normal

import minivit
from minivit import layers
from minivit.arrays import Array
from minivit.checking import gradcheck_layer
from minivit.checking.state import HIDDEN_BY_VALUES, KEEPS_EARLIER_VALUES, STORES_VALUES


class Product(minivit.Layer):
    """A linear map that keeps an array: of its parameter, or another one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.w = minivit.Parameter((3, 5), lambda generator, shape: generator.normal(size=shape))
        self.kept: Any = None

    @functools.cached_property
    def w_t(self) -> Array:
        return np.ascontiguousarray(self.w.value.T)

    def transposed(self) -> Any:
        if self.kind == "cached property":
            return self.w_t
        if self.kind not in ("attribute", "list"):
            return self.w.value.T
        if self.kept is None:
            self.kept = self.w.value.T.copy() if self.kind == "attribute" else [self.w.value.T.copy()]
        return self.kept if self.kind == "attribute" else self.kept[0]

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if self.kind != "cached property":
            self.transposed()
        if self.kind == "random table" and self.kept is None:
            self.kept = np.random.default_rng().uniform(1, 2, 3)
        if self.kind == "table" and self.kept is None:
            self.kept = np.arange(1.0, 4.0)
        if "table" in self.kind:
            x = x * self.kept
        return x @ self.w.value, x

    def backward(self, dy: Array, x: Array) -> Array:
        self.w.add_grad(x.T @ dy)
        dx: Array = dy @ self.transposed()
        return dx * self.kept if "table" in self.kind else dx


@pytest.mark.parametrize(("dtype", "called_before"), [("float64", False), ("float64", True), ("float32", False)])
@pytest.mark.parametrize("kind", ["cached property", "attribute", "list"])
def test_an_array_of_earlier_values_of_parameters_is_found(kind: str, dtype: str, called_before: bool) -> None:
    layer, x = Product(kind).initialize(dtype=dtype), normal(4, 3).astype(dtype)
    if called_before:
        y, cache = layer.forward(x)
        layer.backward(y, cache)
    report = gradcheck_layer(layer, x)
    expected = HIDDEN_BY_VALUES if called_before else KEEPS_EARLIER_VALUES  # all copies have an array of before
    assert [words for words in report.findings if "float32" not in words] == [expected], str(report)


@pytest.mark.parametrize("kind", ["nothing", "table", "random table"])
def test_an_array_that_does_not_depend_on_parameters_may_be_kept(kind: str) -> None:
    layer, x = Product(kind).initialize(dtype="float64"), normal(4, 3)
    # The copies for real and for complex arguments have different random tables.
    method: Any = "central" if kind == "random table" else "auto"
    assert gradcheck_layer(layer, x, method=method).passed
    y, cache = layer.forward(x)
    layer.backward(y, cache)
    assert gradcheck_layer(layer, x).passed


class LinearKept(minivit.Layer):
    """A linear map whose backward pass reads an array that the first forward pass computed from the parameter."""

    def __init__(self, kind: str, keeps: bool) -> None:
        self.kind, self.keeps = kind, keeps
        self.w = minivit.Parameter((3, 5), lambda generator, shape: generator.normal(size=shape))
        self.kept: Any = None

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        u = self.w.value
        if self.kind == "direction":  # does not change with the scale of the parameter
            u = u / np.sqrt((u * u).sum())
        if self.kind == "real" and (np.iscomplexobj(x) or np.iscomplexobj(u)):
            raise TypeError("real numbers alone")
        if self.kept is None:
            self.kept = u.copy()
        h = np.abs(x) if self.kind == "absolute" else x
        y = h @ u
        return np.maximum(y, 0) if self.kind == "kink" else y, (x, h, u, y)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, h, u, y = cache
        if self.kind == "kink":
            dy = dy * (y > 0)
        dw = h.T @ dy
        if self.kind == "direction":
            dw = (dw - u * (u * dw).sum()) / np.sqrt((self.w.value**2).sum())
        self.w.add_grad(dw)
        dh: Array = dy @ (self.kept if self.keeps else u).T
        return dh * np.sign(x) if self.kind == "absolute" else dh


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("kind", ["direction", "absolute", "real", "kink"])
def test_an_array_of_earlier_values_is_found_in_code_of_any_kind(kind: str, called_before: bool) -> None:
    x = normal(4, 3)
    if kind == "kink":
        x[1] = 0
    for keeps in (True, False):
        layer = LinearKept(kind, keeps).initialize(dtype="float64")
        if called_before:
            layer.forward(x)
        report = gradcheck_layer(layer, x)
        expected = HIDDEN_BY_VALUES if called_before else KEEPS_EARLIER_VALUES
        assert report.findings == ((expected,) if keeps else ()), str(report)
        assert report.passed is not keeps


class Powers(minivit.Layer):
    """``x ** p @ w``, divided by the norm of `w` at the first pass, or with a mistake in the backward pass."""

    def __init__(self, kind: str = "") -> None:
        self.kind = kind
        self.p = minivit.Parameter((), lambda generator, shape: np.full(shape, 2.0))
        self.w = minivit.Parameter((3, 3), lambda generator, shape: np.eye(3) * generator.choice([-1, 1], 3))
        self.n: Any = None

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if self.kind == "first norm" and self.n is None:
            self.n = float(np.sqrt((self.w.value.real**2).sum()))
        return x**self.p.value @ self.w.value / (self.n or 1.0), x

    def backward(self, dy: Array, x: Array) -> Array:
        dy = dy / (self.n or 1.0)
        power = x**self.p.value
        self.w.add_grad(power.T @ dy)
        d = dy @ (self.w.value if self.kind == "transpose" else self.w.value.T)
        self.p.add_grad((d * power * np.log(x)).sum())
        return d * (2.0 * x if self.kind == "exponent" else self.p.value * x ** (self.p.value - 1))


@pytest.mark.parametrize("kind", ["exponent", "transpose"])
def test_values_that_hide_a_mistake_are_changed(kind: str) -> None:
    x = np.abs(normal(4, 3)) + 0.5
    report = gradcheck_layer(Powers(kind).initialize(seed=1, dtype="float64"), x)
    assert report.findings == (HIDDEN_BY_VALUES,), str(report)
    assert {row.verdict for row in report.rows} == {"ok"}
    assert gradcheck_layer(Powers().initialize(seed=1, dtype="float64"), x)


def test_numbers_of_the_first_pass_are_not_called_arrays_of_earlier_values() -> None:
    report = gradcheck_layer(Powers("first norm").initialize(seed=1, dtype="float64"), np.abs(normal(4, 3)) + 0.5)
    assert report.findings == (STORES_VALUES,), str(report)
    assert {row.verdict for row in report.rows} == {"ok"}


class Evaluated(minivit.Layer):
    """``x * w``, which keeps an array of the parameter in evaluation alone."""

    def __init__(self) -> None:
        self.w = minivit.Parameter((3,), lambda generator, shape: generator.normal(size=shape))
        self.kept: Any = None

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if keep:
            return x * self.w.value, x
        if self.kept is None:
            self.kept = self.w.value.copy()
        return x * self.kept, None

    def backward(self, dy: Array, x: Array) -> Array:
        self.w.add_grad((dy * x).sum(0))
        return dy * self.w.value


def test_an_array_of_earlier_values_in_evaluation_is_found() -> None:
    report = gradcheck_layer(Evaluated().initialize(dtype="float64"), normal(4, 3))
    assert [words for words in report.findings if "keep=False" in words], str(report)


class Shares:
    """A class of its own whose `astype` returns the arrays of the layer."""

    def __init__(self) -> None:
        self.weight = np.array([1.0, 2.0, 3.0])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"weight": SimpleNamespace(value=self.weight, grad=np.zeros(3))}

    def astype(self, dtype: Any) -> Any:
        return self

    def zero_grad(self) -> None:
        """Gradients are new each time."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        return x * self.weight, x

    def backward(self, dy: Array, x: Array) -> Array:
        return dy * self.weight


def test_a_copy_with_the_arrays_of_the_layer_is_refused() -> None:
    layer = Shares()
    with pytest.raises(TypeError, match=r"Shares\.astype returns the layer's own arrays; it must return a copy"):
        gradcheck_layer(layer, normal(4, 3))
    assert layer.weight.tolist() == [1.0, 2.0, 3.0]


class WithTable(minivit.Layer):
    """x arcsin(w), whose parameter is near the end of its domain; the table is not used."""

    def __init__(self) -> None:
        self.w = minivit.Parameter((3,), lambda generator, shape: 0.9999 * np.sign(generator.normal(size=shape)))
        self.table = np.arange(3.0)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return x * np.arcsin(self.w.value), x

    def backward(self, dy: Array, x: Array) -> Array:
        self.w.add_grad((dy * x).sum(0) / np.sqrt(1 - self.w.value**2))
        return dy * np.arcsin(self.w.value)


def test_other_values_of_parameters_outside_their_domain_are_passed_over() -> None:
    assert gradcheck_layer(WithTable().initialize(dtype="float64"), normal(4, 3))


class Counted(minivit.Layer):
    """Subtracts a fixed array, counts its calls, and applies ReLU and dropout."""

    def __init__(self) -> None:
        self.weight = minivit.Parameter((6,), lambda generator, shape: generator.normal(size=shape))
        self.mean = np.linspace(-1, 1, 6)
        self.seen: dict[str, int] = {"calls": 0}
        self.dropout = layers.Dropout(0.5)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        self.seen["calls"] += 1
        h = np.maximum((x - self.mean) * self.weight.value, 0)
        y, cache = self.dropout.forward(h, rng)
        return y, (x - self.mean, h, cache)

    def backward(self, dy: Array, cache: Any) -> Array:
        x, h, inner = cache
        d = self.dropout.backward(dy, inner) * (h > 0)
        self.weight.add_grad((d * x).sum(0))
        return d * self.weight.value


@pytest.mark.parametrize("rng", [None, 3])
def test_buffers_counters_dropout_and_kinks_are_no_earlier_values(rng: Any) -> None:
    layer, x = Counted().initialize(dtype="float64"), normal(4, 6)
    x[1] = layer.mean  # at the kink
    report = gradcheck_layer(layer, x, rng=rng)
    assert report.passed, str(report)


def test_after_an_array_of_earlier_values_is_found_the_values_are_those_given() -> None:
    class Wrong(Product):
        def backward(self, dy: Array, x: Array) -> Array:
            return 2 * super().backward(dy, x)

    report = gradcheck_layer(Wrong("attribute").initialize(dtype="float64"), normal(4, 3))
    assert report.findings == (KEEPS_EARLIER_VALUES,)
    assert "everywhere 2 times the derivative" in report.rows[0].note
