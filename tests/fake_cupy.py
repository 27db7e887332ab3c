"""A fake CuPy with two devices, to test how a device is selected and what can be wrong with it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minivit import arrays


class CUDARuntimeError(RuntimeError):
    """The error of CUDA's runtime."""


class Device:
    """A device; it is current inside a ``with`` block, or from `use` on."""

    current = 0
    capabilities: tuple[str, ...] = ("90", "75")
    waited: list[int] = []  # noqa: RUF012 - emptied by each `fake_cupy`

    def __init__(self, index: int | None = None) -> None:
        self.id = Device.current if index is None else index
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(Device.current)
        return self.use()

    def __exit__(self, *args: object) -> None:
        Device.current = self._before.pop()

    def use(self) -> Device:
        Device.current = self.id
        return self

    def synchronize(self) -> None:
        Device.waited.append(self.id)

    @property
    def compute_capability(self) -> str:
        return Device.capabilities[self.id]


class FakeArray:
    """An array on the device that is current when it is made."""

    def __init__(self, array: Any) -> None:
        self.array = np.array(array)
        self.device = Device()

    def set(self, array: Any) -> None:
        self.array[...] = array


class Pool:
    """A memory pool with 30 bytes in use and 20 unused."""

    def __init__(self, limit: int) -> None:
        self.get_limit = lambda: limit
        self.free_bytes = lambda: 20
        self.used_bytes = lambda: 30


def _raises(error: Exception) -> Any:
    def function(*args: object) -> Any:
        raise error

    return function


def fake_cupy(
    count: int | Exception = 2,
    *,
    driver: int = 12080,
    capabilities: tuple[str, ...] = ("90", "75"),
    nvrtc: Exception | None = None,
    limit: int = 0,
    version: str = "14.2.0",
    runtime_version: int = 12090,
    first_use: Exception | None = None,
) -> ModuleType:
    """Return a module to be imported as cupy.

    Parameters
    ----------
    count : int or Exception
        The number of devices, or the error that is raised when it is requested.
    driver : int
        The version of CUDA that the driver supports, 0 for no driver.
    capabilities : tuple of str
        The compute capabilities of the devices.
    nvrtc : Exception or None
        The error that is raised when the library NVRTC is loaded.
    limit : int
        The limit of the memory pool, 0 for none.
    version : str
        The version of CuPy.
    runtime_version : int
        The version of CUDA that CuPy was built for.
    first_use : Exception or None
        The error that a device raises at its first use.
    """
    Device.current, Device.capabilities, Device.waited = 0, capabilities, []
    modules: dict[str, Any] = {name: ModuleType(name) for name in ("cupy", "cuda", "runtime", "nvrtc", "cublas")}
    cupy, cuda, runtime = modules["cupy"], modules["cuda"], modules["runtime"]
    runtime.CUDARuntimeError = CUDARuntimeError
    runtime.getDeviceCount = _raises(count) if isinstance(count, Exception) else lambda: count
    runtime.driverGetVersion = lambda: driver
    runtime.runtimeGetVersion = lambda: runtime_version
    runtime.memGetInfo = lambda: (1000, 4000)
    runtime.free = _raises(first_use) if first_use else lambda pointer: None
    runtime.getDeviceProperties = lambda index: {
        "name": f"Card {index}".encode(),
        "totalGlobalMem": 80_000_000_000,
        "major": int(capabilities[index][:-1]),
        "minor": int(capabilities[index][-1]),
    }
    modules["nvrtc"].getVersion = _raises(nvrtc) if nvrtc else lambda: (12, 9)
    cuda.Device, cuda.runtime, cuda.nvrtc, cuda.cublas = Device, runtime, modules["nvrtc"], modules["cublas"]
    cupy.cuda, cupy.__version__, cupy.ndarray = cuda, version, FakeArray
    cupy.asarray = FakeArray
    cupy.empty = lambda shape, dtype: FakeArray(np.empty(shape, dtype))
    cupy.asnumpy = lambda x: x.array.copy()
    cupy.get_default_memory_pool = lambda: Pool(limit)
    return cupy


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> Any:
    """Make ``import cupy`` return `module`, or fail for None, and unregister CuPy, until the test ends."""
    for name in ("_libraries", "_backends", "_devices"):
        known = {key: item for key, item in getattr(arrays, name).items() if key not in ("cupy", FakeArray)}
        monkeypatch.setattr(arrays, name, known)
    monkeypatch.setattr(arrays, "_waiting", {})
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module
