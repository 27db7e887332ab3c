"""State that a pair of functions or a layer keeps outside its cache is found; right ones are not refused for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_passes import linear, linear_backward, normal, tanh_backward

import minivit
from minivit import layers
from minivit.arrays import Array
from minivit.checking import Report, gradcheck, gradcheck_layer

HIDDEN = "reads state outside its cache"


class Kept:
    """Functions whose backward pass reads an attribute, and not its cache."""

    def relu(self, x: Array) -> Any:
        self.mask = x.real > 0
        return x * self.mask, None

    def relu_backward(self, dy: Array, _: Any) -> Array:
        return dy * self.mask

    def largest(self, x: Array) -> Any:
        self.k, self.shape = x.real.argmax(-1)[:, None], x.shape
        return np.take_along_axis(x, self.k, -1)[:, 0], None

    def largest_backward(self, dy: Array, _: Any) -> Array:
        dx = np.zeros(self.shape)
        np.put_along_axis(dx, self.k, dy[:, None], -1)
        return dx

    def flatten(self, x: Array) -> Any:
        self.shape = x.shape
        return x.reshape(len(x), -1), None

    def flatten_backward(self, dy: Array, _: Any) -> Array:
        return dy.reshape(self.shape)

    def embedding(self, table: Array, ids: Array) -> Any:
        self.ids = ids
        return table[ids], table.shape

    def embedding_backward(self, dy: Array, shape: Any) -> Array:
        d = np.zeros(shape)
        np.add.at(d, self.ids, dy)
        return d


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("relu", (normal(3, 4),)),
        ("relu", (np.abs(normal(3, 4)),)),
        ("largest", (normal(3, 4),)),
        ("flatten", (normal(2, 3, 4),)),
        ("flatten", (normal(1, 3, 4),)),
        ("embedding", (normal(5, 3), np.array([1, 0, 4]))),
        ("embedding", (normal(5, 3), np.array([2, 2, 2]))),
    ],
)
@pytest.mark.parametrize("method", ["auto", "taylor"])
def test_state_that_a_scaled_input_leaves_as_it_is_is_found(name: str, arrays: Any, method: Any) -> None:
    kept = Kept()
    report = gradcheck(getattr(kept, name), getattr(kept, f"{name}_backward"), *arrays, method=method)
    assert [HIDDEN in words for words in report.findings] == [True], str(report)
    assert all(row.verdict != "FAILED" for row in report.rows)


class KeptDropout(layers.Dropout):
    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if rng is None:
            return x, None
        self.last = rng.keep_mask(x.shape, 0.5, x.real.dtype)
        return x * self.last, None

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy * self.last


def test_a_mask_that_a_layer_keeps_is_found_by_another_key() -> None:
    report = gradcheck_layer(KeptDropout(0.5), normal(4, 6), rng=3)
    assert [HIDDEN in words for words in report.findings] == [True], str(report)
    assert gradcheck_layer(layers.Dropout(0.5), normal(4, 6), rng=3).findings == ()


class KeptIds(minivit.Layer):
    """An embedding layer, whose one input has no gradient."""

    def __init__(self, hidden: bool) -> None:
        self.hidden = hidden
        self.table = minivit.Parameter((5, 3), lambda generator, shape: generator.normal(size=shape))

    def forward(self, ids: Array, rng: Any = None, keep: bool = True) -> Any:
        self.ids = ids
        return self.table.value[ids], ids

    def backward(self, dy: Array, cache: Any) -> None:  # type: ignore[override] # the input has no gradient
        d = np.zeros(self.table.shape, dy.dtype)
        np.add.at(d, self.ids if self.hidden else cache, dy)
        self.table.add_grad(d)


@pytest.mark.parametrize("hidden", [False, True])
def test_indices_that_a_layer_keeps_are_found(hidden: bool) -> None:
    report = gradcheck_layer(KeptIds(hidden).initialize(dtype="float64"), np.array([[1, 0], [4, 1]]))
    assert [HIDDEN in words for words in report.findings] == [True] * hidden, str(report)


class Reused:
    def __init__(self) -> None:
        self.buffer = np.zeros((3, 4))

    def backward(self, dy: Array, y: Array) -> Array:
        self.buffer[...] = tanh_backward(dy, y)
        return self.buffer


class ReusingLayer(minivit.Layer):
    def __init__(self) -> None:
        self.buffer = np.zeros((3, 4))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return 2 * x, None

    def backward(self, dy: Array, cache: Any) -> Array:
        self.buffer[...] = 2 * dy
        return self.buffer


def test_an_array_that_backward_returns_in_each_call_is_found() -> None:
    words = "the next call overwrites it"
    report = gradcheck(lambda x: (np.tanh(x), np.tanh(x)), Reused().backward, normal(3, 4))
    assert [words in finding for finding in report.findings] == [True], str(report)
    report = gradcheck_layer(ReusingLayer().initialize(dtype="float64"), normal(3, 4))
    assert [words in finding for finding in report.findings] == [True], str(report)


def test_functions_may_return_the_gradients_of_the_parameters_of_a_layer() -> None:
    layer = layers.Linear(4, 3).initialize(dtype="float64")

    def forward(x: Array, weight: Array, bias: Array) -> Any:
        return x @ weight + bias, layer.replica().forward(x.real)[1]

    def backward(dy: Array, cache: Any) -> Any:
        layer.zero_grad()
        return layer.backward(dy, cache), layer.weight.grad, layer.bias.grad

    arrays = normal(5, 4), layer.weight.value.copy(), layer.bias.value.copy()
    report = gradcheck(forward, backward, *arrays)
    assert report.findings == (), str(report)


ZEROS = np.zeros((3, 4))

RIGHT: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Array, ...]]] = {
    "log": (lambda x: (np.log(x), x), lambda dy, x: dy / x, (np.abs(normal(3, 4)) + 0.1,)),
    "sqrt": (lambda x: (np.sqrt(x), x), lambda dy, x: dy / np.sqrt(x) / 2, (np.abs(normal(3, 4)) + 0.1,)),
    "a fixed shape": (lambda x: (x.reshape(4, 3) * 2, 0), lambda dy, _: 2 * dy.reshape(3, 4), (normal(3, 4),)),
    "one array of zeros": (lambda x, w: (x + 0 * w, 0), lambda dy, _: (dy, ZEROS), (normal(3, 4), normal(3, 4))),
    "dy itself": (lambda x: (x + 1, 0), lambda dy, _: dy, (normal(3, 4),)),
    "three arrays": (linear, linear_backward, (normal(5, 5), normal(5, 3), normal(3))),
    "no samples": (lambda x: (x * 2, 0), lambda dy, _: dy * 2, (np.zeros((0, 3)),)),
    "a scalar": (lambda x: (x * 2, 0), lambda dy, _: dy * 2, (np.asarray(0.3),)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pair_of_functions_is_not_refused_for_what_it_returns_elsewhere(name: str) -> None:
    forward, backward, arrays = RIGHT[name]
    report: Report = gradcheck(forward, backward, *arrays)
    assert report.passed, str(report)


def test_a_layer_that_keeps_nothing_is_not_refused_in_training_mode() -> None:
    layer = layers.MLP(5, 7, drop_rate=0.3).initialize(dtype="float64")
    for samples in (1, 4):
        assert gradcheck_layer(layer, normal(samples, 5), rng=3).findings == ()


class Running(minivit.Layer):
    """A layer that counts in its attributes."""

    def __init__(self, in_place: bool) -> None:
        self.mean, self.table, self.in_place = np.zeros(3), [{"counts": np.zeros(2, int)}], in_place

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if self.in_place:
            self.mean += x.real.mean(0)
            self.table[0]["counts"][1] += 1
        else:
            self.mean = self.mean + x.real.mean(0)
        return 2 * x, None

    def backward(self, dy: Array, cache: Any) -> Array:
        return 2 * dy


@pytest.mark.parametrize("in_place", [True, False])
def test_arrays_in_attributes_that_forward_changes_are_named_and_those_of_the_layer_stay(in_place: bool) -> None:
    inner = Running(in_place)
    for layer, prefix in ((inner, "self"), (Outer(inner), "self.inner")):
        report = gradcheck_layer(layer.initialize(dtype="float64"), normal(5, 3))
        names = f"{prefix}.mean, {prefix}.table.0.counts" if in_place else f"{prefix}.mean"
        assert report.findings == (f"forward changes {names}: a layer keeps no state between its passes",)
        assert not inner.mean.any()
        assert not inner.table[0]["counts"].any()


class Outer(minivit.Layer):
    def __init__(self, inner: minivit.Layer) -> None:
        self.inner = inner

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return self.inner.forward(x, rng, keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        return self.inner.backward(dy, cache)


class Memo(minivit.Layer):
    """A table that forward makes for the length of its input, and keeps."""

    def __init__(self) -> None:
        self.table = np.arange(9.0)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if len(self.table) != len(x):
            self.table = np.arange(float(len(x)))
        return x * self.table[:, None], self.table

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy * cache[:, None]


def test_a_table_that_forward_makes_for_another_length_is_no_state() -> None:
    assert gradcheck_layer(Memo().initialize(dtype="float64"), normal(5, 3)).findings == ()


def test_a_number_that_is_a_setting_stays() -> None:
    def slide(x: Array, size: Any, step: Any) -> Any:
        starts: list[int] = []
        while (start := len(starts) * int(step)) + int(size) <= x.shape[1]:
            starts.append(start)
            assert len(starts) < 100
        return np.stack([x[:, i : i + int(size)].sum(axis=1) for i in starts], axis=1), (starts, int(size), x.shape)

    def backward(dy: Array, cache: Any) -> Array:
        starts, size, shape = cache
        dx = np.zeros(shape)
        for k, start in enumerate(starts):
            dx[:, start : start + size] += dy[:, k : k + 1]
        return dx

    assert gradcheck(slide, backward, normal(3, 8), 3, 2)


class Held:
    def __init__(self, value: Array) -> None:
        self.value, self.grad = value, np.zeros_like(value)


class Affine:
    """A layer of another kind, whose parameters hold the arrays of its attributes."""

    __slots__ = ("bias", "parameters", "weight")

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight, self.bias = weight, bias
        self.parameters = {"weight": Held(weight), "bias": Held(bias)}

    def astype(self, dtype: Any) -> Affine:
        return Affine(self.weight.astype(dtype), self.bias.astype(dtype))

    def zero_grad(self) -> None:
        for held in self.parameters.values():
            held.grad[...] = 0

    def forward(self, x: Array, rng: Any = None) -> Any:
        return x @ self.weight + self.bias, x

    def backward(self, dy: Array, x: Array) -> Array:
        self.parameters["weight"].grad += x.T @ dy
        self.parameters["bias"].grad += dy.sum(axis=0)
        return dy @ self.weight.T


def test_a_layer_of_another_kind_keeps_its_parameters_and_attributes_together() -> None:
    report = gradcheck_layer(Affine(normal(4, 3), normal(3)), normal(2, 4))
    assert report, str(report)


class Looked(minivit.Layer):
    """A layer that keeps its last result to be looked at, and a table that it fills."""

    def __init__(self) -> None:
        self.last: Array | None = None
        self.table = np.zeros(5)
        self.ragged = np.array([np.zeros(2), np.zeros(3)], dtype=object)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        self.last = y = np.tanh(x)
        self.table[: x.shape[1]] = np.arange(1, x.shape[1] + 1)
        return y, y

    def backward(self, dy: Array, y: Array) -> Array:
        return dy * (1 - y * y)


def test_what_is_the_same_after_a_second_call_is_no_state() -> None:
    layer = Looked().initialize(dtype="float64")
    assert gradcheck_layer(layer, normal(2, 3))
    layer.forward(normal(3, 3))
    assert gradcheck_layer(layer, normal(2, 3))
    assert gradcheck_layer(layers.Dropout(0.0).initialize(dtype="float64"), np.asarray(0.3), rng=3)


def test_a_forward_pass_that_changes_with_the_calls_before_it_is_named() -> None:
    masks: dict[str, Array] = {}
    generator = np.random.default_rng(1)

    def forward(x: Array) -> Any:
        if "mask" not in masks or masks["mask"].shape != x.shape:
            masks["mask"] = generator.random(x.shape) < 0.5
        return 2 * x * masks["mask"], masks["mask"]

    report = gradcheck(forward, lambda dy, mask: 2 * dy * mask, normal(3, 4))
    assert report.findings == ("forward returns another result after a call with other arguments: it keeps state",)
    assert "the derivative of forward" not in str(report)


class Popping(minivit.Layer):
    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return 2 * x, [2.0]

    def backward(self, dy: Array, cache: Any) -> Array:
        return dy * cache.pop()


def test_a_layer_that_uses_up_its_cache_is_named() -> None:
    report = gradcheck_layer(Popping().initialize(dtype="float64"), normal(2, 3))
    assert "a second backward pass on the same cache raises IndexError" in str(report)


def kept_gradient(dy: Array, cache: dict[str, Array]) -> Array:
    if "dx" not in cache:
        cache["dx"] = dy * (1 - cache["y"] ** 2)
    return cache["dx"]


@pytest.mark.parametrize(
    "backward",
    [kept_gradient, lambda dy, c: np.clip(dy, -5, 5) * (1 - c["y"] ** 2), lambda dy, c: np.abs(dy) * (1 - c["y"] ** 2)],
    ids=["a gradient in the cache", "clipped", "without its sign"],
)
def test_a_backward_pass_that_is_not_linear_in_dy_is_found(backward: Any) -> None:
    def forward(x: Array) -> Any:
        return np.tanh(x), {"y": np.tanh(x)}

    report = gradcheck(forward, backward, normal(5, 7))
    assert [words.startswith("backward of -4 * dy is not -4 times that of dy") for words in report.findings] == [True]
    for dtype in ("float64", "float32"):
        assert gradcheck(forward, lambda dy, c: dy * (1 - c["y"] ** 2), normal(5, 7).astype(dtype)).passed


class KeptGradient(minivit.Layer):
    def __init__(self) -> None:
        self.weight = minivit.Parameter((3,), lambda generator, shape: generator.normal(size=shape))

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        return np.tanh(x) * self.weight.value, {"y": np.tanh(x)}

    def backward(self, dy: Array, cache: dict[str, Array]) -> Array:
        self.weight.add_grad((dy * cache["y"]).sum(axis=0))
        return kept_gradient(dy * self.weight.value, cache)


def test_a_layer_that_keeps_a_gradient_in_its_cache_is_found() -> None:
    report = gradcheck_layer(KeptGradient().initialize(seed=0, dtype="float64"), normal(5, 3))
    assert "its cache keeps a gradient" in " ".join(report.findings)


def test_a_result_that_forward_returns_in_each_call_is_found_and_measured_right() -> None:
    buffers: dict[Any, Array] = {}

    def forward(x: Array) -> Any:
        y = buffers.setdefault((x.shape, x.dtype), np.empty_like(x))
        np.multiply(x, x, out=y)
        return y, x

    report = gradcheck(forward, lambda dy, x: 2 * dy * x, normal(3, 5))
    assert report.findings == (
        "forward returns the same array in each call, so the next call overwrites it: return a copy",
    )
    assert [row.verdict for row in report.rows] == ["ok"], str(report)


class Changing(minivit.Layer):
    """A layer one of whose passes changes a parameter."""

    def __init__(self, what: str) -> None:
        self.bias, self.what = minivit.Parameter((3,), lambda generator, shape: generator.normal(size=shape)), what

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> Any:
        if self.what == "forward":
            self.bias.value[...] = self.bias.value / 2
        return x + self.bias.value, None

    def backward(self, dy: Array, cache: Any) -> Array:
        self.bias.add_grad(dy.sum(axis=0))
        if self.what == "backward":
            self.bias.value[...] = self.bias.value - 0.1 * dy.sum(axis=0)
        return dy


@pytest.mark.parametrize("what", ["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_pass_that_changes_the_values_of_a_parameter_is_found(what: str, dtype: str) -> None:
    report = gradcheck_layer(Changing(what).initialize(seed=0, dtype=dtype), normal(5, 3))
    words = f"{what} changes bias: only an optimiser changes the values of parameters"
    assert words in report.findings, str(report)
    assert gradcheck_layer(Changing("nothing").initialize(seed=0, dtype=dtype), normal(5, 3))
