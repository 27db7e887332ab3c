"""The strict library: its devices, 16-bit precisions and allocations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu.memory import MixError
from strict import LeakError, strict, watch

from minivit.arrays import backend, dtype_named, namespace, on_device_of, to_backend, to_host

BFLOAT16 = dtype_named("bfloat16")


def on_1(x: Any) -> Any:
    return strict.on_device(x, 1)


def ones(dtype: Any = "float32", shape: tuple[int, ...] = (2, 3)) -> Any:
    return strict.ones(shape, dtype=dtype)


# Devices


def test_an_array_has_a_device() -> None:
    x = on_1(ones())
    assert (ones().device.id, x.device.id, x[0].device.id, x.T.device.id) == (0, 1, 1, 1)
    assert to_host(x).tolist() == to_host(ones()).tolist()


def test_arrays_on_two_devices_are_an_error() -> None:
    here, there = ones(), on_1(ones())
    with pytest.raises(TypeError, match="cannot mix arrays of strict on device 0 and strict on device 1"):
        namespace(here, there)
    mixes: list[Callable[[], Any]] = [
        lambda: here + there, lambda: strict.where(here > 0, here, there), lambda: here.__iadd__(there)
    ]  # fmt: skip
    for mix in mixes:
        with pytest.raises(MixError, match=r"runs on device 0, .* is on device 1"):
            mix()


def test_operations_run_on_the_current_device() -> None:
    here, there = ones(), on_1(ones())
    with pytest.raises(MixError, match="add__ runs on device 0"):
        there + there
    with on_device_of(there):
        assert (there + there).device.id == strict.zeros(3, dtype="float32").device.id == 1
        with on_device_of(here), pytest.raises(MixError, match="add__ runs on device 0"):
            there + there
        with pytest.raises(MixError, match="add__ runs on device 1"):
            here + here
    assert (here + here).device.id == 0


def test_a_device_is_selected_by_name() -> None:
    there: Any = to_backend(np.ones(3), "strict:1")
    here: Any = to_backend(np.ones(3), "strict")
    assert (here.device.id, there.device.id) == (0, 1)
    with strict.select(None):
        backend("strict:1")
        assert ones().device.id == 1
    assert ones().device.id == 0


# Precisions


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "float32", "float64"])
def test_uninitialised_memory_is_nan(dtype: Any) -> None:
    for x in (strict.empty((2, 3), dtype=dtype), strict.empty_like(ones(dtype))):
        assert np.isnan(to_host(x).astype("float32")).all()
    assert (to_host(strict.empty(3, dtype="int64")) == -1).all()


MIXES: dict[str, Callable[[], Any]] = {
    "bfloat16 and float32": lambda: ones(BFLOAT16) + ones(),
    "float16 and bfloat16": lambda: ones(BFLOAT16) * ones("float16"),
    "assigned": lambda: ones().__setitem__(..., ones(BFLOAT16)),
    "a host array copied": lambda: strict.copyto(ones(), np.ones((2, 3), np.float32)),
}


@pytest.mark.parametrize("fault", MIXES)
def test_a_mix_with_16_bit_numbers_is_an_error(fault: str) -> None:
    with pytest.raises(MixError):
        MIXES[fault]()


LEAKS: dict[str, Callable[[], Any]] = {
    "float32": lambda: ones(BFLOAT16) @ ones(BFLOAT16).T,
    "float64": lambda: ones(BFLOAT16) * strict.arange(3),
}


@pytest.mark.parametrize("precision", LEAKS)
def test_an_implicit_conversion_of_bfloat16_is_an_error(precision: str) -> None:
    """Some of NumPy's operations on bfloat16 return a higher precision."""
    with pytest.raises(LeakError, match=f"returns {precision}, but its arguments are bfloat16"):
        LEAKS[precision]()


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "float64"])
def test_explicit_conversions_are_allowed(dtype: Any) -> None:
    x, y = ones(), strict.empty((2, 3), dtype=dtype)
    strict.copyto(y, x, casting="unsafe")
    assert (to_host(y) == 1).all()
    x[...] = (y + y).astype("float32")
    assert (to_host(x) == 2).all()
    strict.copyto(x, y, casting="unsafe")
    assert (to_host(x) == 1).all()


# Memory


def test_an_array_has_an_address() -> None:
    x = ones(shape=(4, 8))
    assert x.data.ptr % 256 == 0
    assert x[1:, 2:].data.ptr - x.data.ptr == (8 + 2) * 4
    assert (x.flags.c_contiguous, x[:, 1:].flags.c_contiguous, x.T.flags.f_contiguous) == (True, False, True)
    assert x.copy().data.ptr != x.data.ptr


def test_allocations_are_counted() -> None:
    x = ones()
    with watch() as counts:
        x[0], x.T, x.reshape(3, 2), x.ravel()
        x += 1.0
        x[...] = 2.0
        strict.multiply(x, 2.0, out=x)
    assert counts.allocations == []
    with watch() as counts:
        strict.empty((5, 5), dtype="float64")
        x + x
        x.T.ravel()
        strict.argmax(x)
        to_backend(np.ones(3, np.uint8), strict)
    assert counts.allocations == [200, 24, 24, 8, 3]


def test_results_have_the_layout_of_numpy() -> None:
    x: Any = strict.asarray(np.arange(24.0).reshape(2, 3, 4))
    assert (x.transpose(2, 0, 1) + 1.0).strides == (8, 96, 32)
    assert (x.T * 2.0).flags.f_contiguous
    assert to_host(x.T * 2.0).tolist() == (np.arange(24.0).reshape(2, 3, 4).T * 2).tolist()
