"""The selection of a library and a device by name, the errors when they cannot be used, and moves between devices."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fake_cupy import CUDARuntimeError, Device, FakeArray, fake_cupy, install
from strict import StrictArray, StrictLibrary

from minivit import arrays
from minivit.arrays import backend, namespace, to_backend, to_host
from minivit.arrays.cuda import wheels
from minivit.errors import RunError, UserError

X = np.arange(6.0).reshape(2, 3)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """CuPy with two devices."""
    return install(monkeypatch, fake_cupy())


def insufficient() -> CUDARuntimeError:
    return CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")


# Selection


def test_numpy_needs_no_other_library() -> None:
    assert backend("numpy") is np


def test_importing_minivit_does_not_look_for_cupy() -> None:
    code = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("cupy"):
            sys.exit(f"{name} was imported")

sys.meta_path.insert(0, Finder())
import minivit
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_cupy_is_the_current_device(cupy: Any) -> None:
    assert backend("cupy") is cupy
    assert Device.current == 0
    assert arrays.library_name(cupy) == "cupy"


def test_a_device_is_selected_by_its_index(cupy: Any) -> None:
    assert backend("cupy:1") is cupy
    assert Device.current == 1
    assert backend("cupy") is cupy
    assert Device.current == 1
    assert arrays.library_name(cupy) == "cupy"


def test_an_array_of_cupy_registers_cupy(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeArray, "__module__", "cupy._core.core")
    assert namespace(FakeArray(X)) is cupy


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch", "unknown backend 'torch'; expected 'numpy', 'cupy' or, for device 1, 'cupy:1'"),
        ("cupy:", "'' is not the index of a device; expected such as 'cupy:0'"),
        ("cupy:-1", "'-1' is not the index of a device"),
        ("cupy:one", "'one' is not the index of a device"),
        ("cupy:2", r"there is no device 2; the devices are 0 \(Card 0\), 1 \(Card 1\)"),
        ("numpy:0", "numpy has no devices to choose from; use 'numpy'"),
    ],
)
def test_an_unknown_backend_or_device_is_an_error(cupy: Any, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        backend(name)
    assert Device.current == 0


# Errors


ALTERNATIVE = "or use backend='numpy'"

UNUSABLE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no driver": ({"count": insufficient(), "driver": 0}, ["no NVIDIA driver here"]),
    "an old driver": (
        {"count": insufficient(), "driver": 11040},
        ["the NVIDIA driver supports CUDA 11.4", "needs CUDA 12.9", "update the driver"],
    ),
    "no device": (
        {"count": CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")},
        ["driver finds no device", "CUDA_VISIBLE_DEVICES"],
    ),
    "zero devices": ({"count": 0}, ["driver finds no device"]),
    "a broken driver": (
        {"count": CUDARuntimeError("cudaErrorSystemDriverMismatch: driver and kernel differ")},
        ["CUDA cannot start", "cudaErrorSystemDriverMismatch: driver and kernel differ", "nvidia-smi"],
    ),
    "no NVRTC": (
        {"nvrtc": RuntimeError('Failure finding "libnvrtc.so.12":\nNo such file')},
        ['cannot be loaded (Failure finding "libnvrtc.so.12": No such file)', '"cupy-cuda12x[ctk]" ml_dtypes'],
    ),
    "an old device": (
        {"capabilities": ("61", "75")},
        ["Card 0 has compute capability 6.1", "need 7.0", "choose another device"],
    ),
    "an old device for CUDA 13": (
        {"capabilities": ("70", "75"), "driver": 13000, "runtime_version": 13000},
        ["Card 0 has compute capability 7.0", "need 7.5"],
    ),
    "a device that is full": (
        {"first_use": CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")},
        [
            "the device cannot be used (cudaErrorMemoryAllocation: out of memory)",
            "whether another process uses its mem",
        ],
    ),
    "an old CuPy": (
        {"version": "13.6.0"},
        ["CuPy 13.6.0", "needs version 14", '"cupy-cuda12x[ctk]" ml_dtypes'],
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_each_error_is_one_line_with_an_alternative(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wrong, words = UNUSABLE[name]
    install(monkeypatch, fake_cupy(**wrong))
    with pytest.raises(UserError) as refused:
        backend("cupy")
    said = str(refused.value)
    assert "\n" not in said
    assert [word for word in [*words, ALTERNATIVE] if word not in said] == []


def test_a_device_can_be_used_beside_one_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = install(monkeypatch, fake_cupy(capabilities=("61", "75")))
    assert backend("cupy:1") is cupy


def test_a_missing_cupy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match=r'needs CuPy, which is not installed: .*pip install .*"cupy-cuda12x\[ctk\]"'):
        backend("cupy")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "module 'cupy' has no attribute '__version__'"),
        ("try:\n    import no_such_part\nexcept ImportError as e:\n    raise ImportError('====\\nadvice') from e",
         "No module named 'no_such_part'"),
        ("import no_such_part", "No module named 'no_such_part'"),
        ("raise OSError('libcudart.so.12:\\n  cannot open shared object file')",
         "libcudart.so.12: cannot open shared object file"),
    ],
)  # fmt: skip
def test_a_cupy_that_cannot_be_imported_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, text: str, reason: str
) -> None:
    install(monkeypatch, None)
    monkeypatch.delitem(sys.modules, "cupy")
    (tmp_path / "cupy.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refused:
        backend("cupy")
    assert f"is installed but cannot be imported ({reason}); uninstall it and {wheels()}" in str(refused.value)


def test_a_failure_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_cupy(insufficient()))
    with pytest.raises(UserError):
        backend("cupy")
    cupy = install(monkeypatch, fake_cupy())
    assert backend("cupy") is cupy


# Moves between devices


def test_to_backend_moves_to_the_named_device_and_keeps_the_current_one(cupy: Any) -> None:
    first: Any = to_backend(X, "cupy:0")
    second: Any = to_backend(first, "cupy:1")
    assert (first.device.id, second.device.id, Device.current) == (0, 1, 0)
    assert np.array_equal(to_host(second), X)
    assert to_backend(second, "cupy:1") is second
    assert to_backend(second, cupy) is second


def test_a_large_array_is_copied_without_pinned_memory(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's asarray would allocate and keep pinned memory of the array's size."""
    monkeypatch.setattr("minivit.arrays.cuda._LARGE", 48)
    monkeypatch.setattr(cupy, "asarray", lambda x: ("by asarray", x.nbytes))
    moved: Any = to_backend(X, "cupy:1")
    np.testing.assert_array_equal(moved.array, X)
    assert moved.device.id == 1
    assert to_backend(X[:1], "cupy") == ("by asarray", 24)
    np.testing.assert_array_equal(to_backend(X.astype(">f8"), "cupy").array, X)  # type: ignore[attr-defined]  # of the fake


def test_two_devices_do_not_mix(cupy: Any) -> None:
    first, second = (to_backend(X, name) for name in ("cupy:0", "cupy:1"))
    assert namespace(first, first) is cupy
    with pytest.raises(TypeError, match="cannot mix arrays of cupy on device 0 and cupy on device 1"):
        namespace(first, second)
    with pytest.raises(TypeError, match="cannot mix arrays of cupy on device 1 and numpy on the host"):
        namespace(second, X)


def test_on_device_of_makes_the_device_of_an_array_current(cupy: Any) -> None:
    second = to_backend(X, "cupy:1")
    with arrays.on_device_of(second):
        assert Device.current == 1
    assert Device.current == 0
    with arrays.on_device_of(X):
        assert Device.current == 0


# Properties of devices


def test_devices_are_listed(cupy: Any) -> None:
    assert arrays.devices() == [
        {"index": 0, "name": "Card 0", "memory": 80_000_000_000, "compute_capability": "9.0"},
        {"index": 1, "name": "Card 1", "memory": 80_000_000_000, "compute_capability": "7.5"},
    ]
    assert arrays.devices("numpy") == []


def test_free_memory_is_that_of_the_driver_and_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arrays.free_memory(np) is None
    install(monkeypatch, fake_cupy())
    assert arrays.free_memory(backend("cupy")) == 1020


def test_free_memory_respects_the_limit_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_cupy(limit=100))
    assert arrays.free_memory(backend("cupy")) == 70


def test_synchronize_waits_for_the_current_device(cupy: Any) -> None:
    arrays.synchronize(np)
    arrays.synchronize(backend("cupy:1"))
    assert Device.waited == [1]


def test_bfloat16_needs_a_device_that_supports_it(cupy: Any) -> None:
    arrays.check_dtype(np, ml_dtypes.bfloat16)
    arrays.check_dtype(backend("cupy:0"), ml_dtypes.bfloat16)
    arrays.check_dtype(backend("cupy:1"), "float16")
    with pytest.raises(UserError, match=r"compute capability 7\.5, but bfloat16 needs 8\.0; use float16 or float32"):
        arrays.check_dtype(cupy, ml_dtypes.bfloat16)


def test_the_oldest_supported_devices_and_a_new_one_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_cupy(3, capabilities=("70", "80", "120")))
    backend("cupy:0")
    arrays.check_dtype(backend("cupy:1"), ml_dtypes.bfloat16)
    arrays.check_dtype(backend("cupy:2"), ml_dtypes.bfloat16)


def test_a_registered_library_handles_its_own_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    waited: list[str] = []
    library: Any = StrictLibrary()
    arrays.register_backend("other", library, StrictArray)
    assert arrays.free_memory(library) is None
    library.free_memory = lambda: 64
    library.synchronize = lambda: waited.append("other")
    arrays.synchronize(library)
    assert arrays.free_memory(library) == 64
    assert waited == ["other"]


def test_another_object_handles_the_devices_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    library = StrictLibrary()
    arrays.register_backend("other", library, StrictArray, devices=SimpleNamespace(free_memory=lambda: 32))
    assert arrays.free_memory(library) == 32


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), True),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True),
        (CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"), False),
        (RunError("the disk is full"), False),
        (ValueError("cudaErrorMemoryAllocation"), False),
    ],
)
def test_failed_allocations_are_recognised(error: Exception, expected: bool) -> None:
    assert arrays.is_out_of_memory(error) is expected


# Callbacks on registration


def test_a_callback_runs_when_its_library_is_first_used(cupy: Any) -> None:
    loaded: list[str] = []
    arrays.when_registered("cupy", lambda: loaded.append("kernels"))
    assert loaded == []
    backend("cupy")
    backend("cupy:1")
    assert loaded == ["kernels"]


def test_a_callback_for_a_registered_library_runs_at_once() -> None:
    loaded: list[str] = []
    arrays.when_registered("numpy", lambda: loaded.append("kernels"))
    assert loaded == ["kernels"]


def test_a_callback_does_not_run_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_cupy(0))
    loaded: list[str] = []
    arrays.when_registered("cupy", lambda: loaded.append("kernels"))
    with pytest.raises(UserError):
        backend("cupy")
    assert loaded == []


# Dtypes


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex128", ml_dtypes.bfloat16])
def test_floating_dtypes_are_recognised(dtype: Any) -> None:
    assert arrays.is_floating(dtype)
    assert arrays.is_floating(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "V2", "S3"])
def test_other_dtypes_are_not_floating(dtype: str) -> None:
    assert not arrays.is_floating(dtype)


@pytest.mark.parametrize(
    ("dtype", "real"),
    [("complex128", "float64"), ("complex64", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16")],
)
def test_real_dtype_keeps_the_precision(dtype: str, real: str) -> None:
    assert arrays.real_dtype(arrays.dtype_named(dtype)) == arrays.dtype_named(real)


def test_a_dtype_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arrays.dtype_named("bfloat16") == ml_dtypes.bfloat16
    assert arrays.dtype_named("float32") == np.float32
    with pytest.raises(UserError, match="unknown dtype 'float31'; expected such as 'float32' or 'bfloat16'"):
        arrays.dtype_named("float31")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UserError, match=r"bfloat16 needs ml_dtypes, which is not installed: .*pip install .*ml_dtypes"):
        arrays.dtype_named("bfloat16")
    assert arrays.dtype_named("float32") == np.float32
