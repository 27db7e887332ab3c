"""The contract of ops and layers: tests of a fixture `case`, which test_ops.py and test_layers.py provide.

`ways` yields a case once for the reference, and once for each array library with a kernel that covers it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivit import Layer, ops, testing
from minivit.arrays import Array, dtype_named, to_host
from minivit.checking.cases import Case
from minivit.ops import registry
from minivit.ops.registry import Kernel

STEP = 1e-20


def ways(case: Case) -> Iterator[Case]:
    """Yield the case for the reference, and for each array library with a kernel that covers it."""
    yield by_reference(case)
    for library in dict.fromkeys(kernel.library for kernel in kernels_of(case.op)):
        moved = case.on(library)
        if any(kernel_of_case(moved, dtype) for dtype in ("float32", "float64")):
            yield moved


def kernels_of(name: str) -> tuple[Kernel, ...]:
    """Return the kernels of an op or layer; most layers cannot have kernels."""
    return registry.kernels_of(name) if name in registry._kernels else ()


def by_reference(case: Case) -> Case:
    """Return the case with a forward pass, and so a backward pass, that runs the references alone."""

    def forward(*arrays: Array, **options: Any) -> tuple[Array, Any]:
        with ops.reference_only():
            return case.forward(*arrays, **options)

    return replace(case, name=f"{case.name}-reference", forward=forward)


def kernel_of_case(case: Case, dtype: str) -> Kernel | None:
    """Return the kernel that runs the case in `dtype`, or None if the reference runs it."""
    _, cache = case.forward(*case.make(0, dtype_named(dtype)))
    return next((kernel for kernel in kernels_of(case.op) if type(own(cache)) is kernel.cache), None)


def ops_of(case: Case) -> int:
    """Return how many ops round in sequence before a gradient: 1 for an op, and about 5 at most for a layer."""
    return 1 if case.op in ops.__all__ else 5


def own(cache: Any) -> Any:
    """Return the cache of the op or layer; the case of a layer returns it together with the layer."""
    return cache[1] if isinstance(cache, tuple) and isinstance(cache[0], Layer) else cache


def sizes_of(case: Case) -> st.SearchStrategy[dict[str, int]]:
    """Draw a size of 1 to 5 for every axis whose size can be chosen."""
    return st.fixed_dictionaries({name: st.integers(1, 5) for name in case.sizes})


def normal(like: Array, seed: int = 1) -> Array:
    return np.asarray(np.random.default_rng(seed).standard_normal(like.shape), like.dtype)


def held(cache: Any) -> Iterator[Array]:
    """Yield the arrays and parameters in a cache."""
    if isinstance(cache, tuple | list):
        for item in cache:
            yield from held(item)
    elif hasattr(cache, "parameters"):
        yield cache.parameters.store.values
    elif hasattr(cache, "dtype"):
        yield to_host(cache)


def assert_close(got: Sequence[Array], expected: Sequence[Array], tolerance: float = 1e-13) -> None:
    """Assert equality to `tolerance`, relative to the largest expected number."""
    scale = max(float(np.abs(x).max(initial=0.0)) for x in expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max(initial=0.0) <= tolerance * scale


def assert_near(got: Sequence[Array], expected: Sequence[Array], limit: float, least: float = 0.0) -> None:
    """Assert equality to `limit` times the norm of each array, or `least` times the largest norm if that is greater."""
    norms = [float(np.linalg.norm(x.astype("float64"))) for x in expected]
    for one, other, norm in zip(got, expected, norms, strict=True):
        assert one.shape == other.shape
        distance = float(np.linalg.norm(one.astype("float64") - other.astype("float64")))
        assert distance <= limit * max(norm, least * max(norms))


def assert_same_bits(got: Sequence[Array], expected: Sequence[Array]) -> None:
    assert [x.tobytes() for x in got] == [x.tobytes() for x in expected]


def test_gradient(case: Case) -> None:
    report = testing.assert_gradients(
        case.forward, case.backward, *case.make(0, "float64"), names=case.names, method="complex"
    )
    assert report.max_error <= 1e-11
    assert {row.verdict for row in report.rows} <= {"ok", "zero"}


def test_the_taylor_remainder_has_slope_2_or_the_function_is_linear(case: Case) -> None:
    report = testing.assert_gradients(case.forward, case.backward, *case.make(0, "float64"), names=case.names)
    for row in report.rows:
        assert row.slope == "linear" or (isinstance(row.slope, float) and abs(row.slope - 2.0) <= 0.05), str(report)


def test_a_gradient_of_another_shape_or_dtype_is_an_error(case: Case) -> None:
    y, cache = case.forward(*case.make(0, "float32"))
    dy = normal(y)
    with pytest.raises(ValueError, match=r"dy has shape .*expected"):
        case.backward(np.stack([dy, dy]), cache)
    if any(x.dtype.kind == "f" for x in held(cache)):
        with pytest.raises(TypeError, match=r"dy has dtype float64; expected float32"):
            case.backward(dy.astype("float64"), cache)


@given(data=st.data())
def test_adjoint_identity(case: Case, data: st.DataObject) -> None:
    """<u, J v> = <J^T u, v> for any sizes and values."""
    x, *others = case.make(data.draw(st.integers(0, 99)), "float64", data.draw(sizes_of(case)))
    arrays = (x * data.draw(st.sampled_from((1e-4, 1.0, 10.0))), *others)
    directions = [normal(array, seed) for seed, array in enumerate(arrays)]
    y, cache = case.forward(*arrays)
    u = normal(y)
    gradients = case.backward(u, cache)
    moved, _ = case.forward(*(array + 1j * STEP * v for array, v in zip(arrays, directions, strict=True)))
    derivative = moved.imag / STEP
    terms = [(u, derivative), *zip(gradients, directions, strict=True)]
    left, *right = (float((one * other).sum()) for one, other in terms)
    scale = sum(float(np.linalg.norm(one) * np.linalg.norm(other)) for one, other in terms)
    assert abs(left - sum(right)) <= 1e-11 * max(scale, 1e-3)


@given(data=st.data())
def test_backward_is_linear_in_dy(case: Case, data: st.DataObject) -> None:
    y, cache = case.forward(*case.make(0, "float64", data.draw(sizes_of(case))))
    one, other = normal(y, 1), normal(y, 2)
    parts = zip(case.backward(one, cache), case.backward(other, cache), strict=True)
    assert_close(case.backward(3.0 * one - 0.7 * other, cache), [3.0 * a - 0.7 * b for a, b in parts])


@given(data=st.data())
def test_the_gradient_of_a_batch_is_the_sum_over_its_parts(case: Case, data: st.DataObject) -> None:
    arrays = case.make(0, "float64", data.draw(sizes_of(case)) | {"B": 5})
    cut = data.draw(st.integers(1, 4))
    y, cache = case.forward(*arrays)
    dy = normal(y)
    results: list[Array] = []
    gradients = []
    for part in (slice(0, cut), slice(cut, 5)):
        y_part, cache = case.forward(
            *(x[part] if batched else x for x, batched in zip(arrays, case.batched, strict=True)), first=part.start
        )
        share = (part.stop - part.start) / 5  # the loss is a mean over the batch
        results.append(y_part if y.ndim else y_part * share)
        gradients.append(case.backward(dy[part] if y.ndim else dy * share, cache))
    whole = [np.concatenate(results) if y.ndim else results[0] + results[1]]
    together = [
        np.concatenate(pair) if batched else pair[0] + pair[1]
        for *pair, batched in zip(*gradients, case.batched, strict=True)
    ]
    assert_close(whole, [y])
    assert_close(together, case.backward(dy, case.forward(*arrays)[1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arguments_are_unchanged_and_a_second_backward_pass_gives_the_same_bits(case: Case, dtype: str) -> None:
    arrays = case.make(0, dtype)
    before = [x.copy() for x in arrays]
    y, cache = case.forward(*arrays)
    kept = [x.copy() for x in held(cache)]
    dy = normal(y)
    first = [dx.copy() for dx in case.backward(dy, cache)]
    assert_same_bits([*arrays, dy, *held(cache)], [*before, normal(y), *kept])
    assert_same_bits(case.backward(dy, cache), first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_result_without_a_cache_has_the_same_bits(case: Case, dtype: str) -> None:
    arrays = case.make(0, dtype)
    y, cache = case.forward(*arrays, keep=False)
    assert cache is None
    assert_same_bits([y], [case.forward(*arrays)[0]])


@given(data=st.data())
def test_strides_do_not_change_the_result(case: Case, data: st.DataObject) -> None:
    arrays = case.make(0, "float64", data.draw(sizes_of(case)))
    y, cache = case.forward(*arrays)
    dy = normal(y)
    expected = case.backward(dy, cache)
    views = [data.draw(testing.strided(x)) for x in arrays[:3]]
    y_of_views, cache = case.forward(*views, *arrays[3:])
    assert_close([y_of_views], [y])
    assert_close(case.backward(data.draw(testing.strided(dy)), cache), expected)


@given(data=st.data())
def test_float32_stays_float32_and_is_close_to_float64(case: Case, data: st.DataObject) -> None:
    arrays = case.make(data.draw(st.integers(0, 9)), "float32", data.draw(sizes_of(case)))
    y, cache = case.forward(*arrays)
    dy = normal(y)
    gradients = case.backward(dy, cache)
    assert {x.dtype for x in (y, *gradients, *held(cache)) if x.dtype.kind == "f"} == {np.dtype("float32")}
    y64, cache64 = case.forward(*(x.astype("float64") for x in arrays))
    assert_close([y], [y64], 1e-4)
    assert_close(gradients, case.backward(dy.astype("float64"), cache64), 1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_extreme_values_give_finite_results(case: Case, scale: float) -> None:
    x, *others = case.make(0, "float32")
    y, cache = case.forward(x * np.float32(scale), *others)
    assert all(np.isfinite(array).all() for array in (y, *case.backward(normal(y), cache)))
