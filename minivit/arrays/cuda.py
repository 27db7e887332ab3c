"""CuPy and its devices: which there are, and what stands in the way of using them. Nothing else here imports CuPy."""

from __future__ import annotations

import importlib
from typing import Any

from minivit.errors import UserError

OLDEST_CUPY = 14  # from which on its arrays may be of bfloat16
OLDEST_DEVICE = (7, 0)  # compute capability, from which on the kernels compile,
OLDEST_DEVICE_13 = (7, 5)  # and with CUDA 13
BFLOAT16_DEVICE = (8, 0)
_LARGE = 1 << 24  # bytes of an array that is copied as it lies
WHEELS = "pip install 'minivit[cuda12]', or 'minivit[cuda13]' for a driver that knows CUDA 13,"
WAY_OUT = "or use backend='numpy'"


def in_a_line(error: BaseException) -> str:
    """Return the text of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def import_cupy() -> Any:
    """Return the module cupy; UserError unless it is installed, imports and is new enough."""
    try:
        cupy = importlib.import_module("cupy")
        version = cupy.__version__  # a folder that an uninstalled CuPy left behind imports too, and has none
    except Exception as error:  # a wheel for another machine may stumble over anything
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise UserError(f"backend 'cupy' needs CuPy, which is not installed: {WHEELS} {WAY_OUT}") from error
        reason = in_a_line(error.__cause__ or error)  # CuPy wraps a page of advice around the cause
        raise UserError(
            f"backend 'cupy': CuPy is installed but does not import ({reason}); uninstall it and {WHEELS} {WAY_OUT}"
        ) from error
    if int(version.partition(".")[0]) < OLDEST_CUPY:
        raise UserError(f"backend 'cupy': CuPy {version} is here, but minivit needs {OLDEST_CUPY}: {WHEELS} {WAY_OUT}")
    return cupy


class CudaDevices:
    """The devices of CuPy; UserError unless there is one and what it needs."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._count = self._counted()
        try:
            cupy.cuda.nvrtc.getVersion()
            cupy.cuda.cublas  # noqa: B018 - is loaded when it is asked for
        except Exception as error:
            raise UserError(
                f"backend 'cupy': a library of CUDA does not load ({in_a_line(error)}); {WHEELS} {WAY_OUT}"
            ) from error

    def _counted(self) -> int:
        runtime = self._cupy.cuda.runtime
        try:
            count = int(runtime.getDeviceCount())
            reason = "" if count else "cudaErrorNoDevice"
        except runtime.CUDARuntimeError as error:
            count, reason = 0, in_a_line(error)
        if count:
            return count
        driver = _version(runtime.driverGetVersion())
        if "InsufficientDriver" in reason and driver is None:
            raise UserError(f"backend 'cupy': there is no NVIDIA driver here; install one, {WAY_OUT}")
        if "InsufficientDriver" in reason:
            raise UserError(
                f"backend 'cupy': the NVIDIA driver knows CUDA {driver}, but this CuPy is made "
                f"for {_version(runtime.runtimeGetVersion())}; update the driver, install the wheel for it, {WAY_OUT}"
            )
        if "NoDevice" in reason:
            raise UserError(
                "backend 'cupy': the NVIDIA driver is there but no device; see `nvidia-smi`, "
                f"and whether CUDA_VISIBLE_DEVICES hides it, {WAY_OUT}"
            )
        raise UserError(f"backend 'cupy': CUDA does not start here ({reason}); see `nvidia-smi`, {WAY_OUT}")

    def listed(self) -> list[dict[str, Any]]:
        """Return what the devices are."""
        found = []
        for index in range(self._count):
            about = self._cupy.cuda.runtime.getDeviceProperties(index)
            found.append(
                {
                    "index": index,
                    "name": about["name"].decode(),
                    "memory": int(about["totalGlobalMem"]),
                    "compute_capability": f"{about['major']}.{about['minor']}",
                }
            )
        return found

    def select(self, index: int | None) -> Any:
        """Return a device on which the kernels run."""
        if index is not None and index >= self._count:
            there = ", ".join(f"{device['index']} ({device['name']})" for device in self.listed())
            raise UserError(f"backend 'cupy:{index}': there is no device {index}; there is {there}")
        runtime = self._cupy.cuda.runtime
        try:
            device = self._cupy.cuda.Device(index)
            found = _capability(device)
            with device:
                runtime.free(0)  # begins with the device, if nothing has yet
        except runtime.CUDARuntimeError as error:
            raise UserError(
                f"backend 'cupy': the device cannot be used ({in_a_line(error)}); see `nvidia-smi`, whether others "
                f"have its memory or have it alone, {WAY_OUT}"
            ) from error
        oldest = OLDEST_DEVICE_13 if runtime.runtimeGetVersion() >= 13000 else OLDEST_DEVICE
        if found < oldest:
            raise UserError(
                f"backend 'cupy': {self.listed()[device.id]['name']} has compute capability {dotted(found)}; "
                f"minivit's kernels need {dotted(oldest)}: take another device, {WAY_OUT}"
            )
        return device

    def compute_capability(self) -> tuple[int, int]:
        """Return that of the current device."""
        return _capability(self._cupy.cuda.Device())

    def free_memory(self) -> int:
        """Return what an allocation could still get: what is free, and what CuPy's pool holds unused."""
        pool = self._cupy.get_default_memory_pool()
        free = self._cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
        limit = pool.get_limit()
        return int(min(free, limit - pool.used_bytes()) if limit else free)

    def upload(self, x: Any) -> Any:
        """Return a copy of the NumPy array `x` on the current device.

        CuPy's asarray goes by way of memory of that size that cannot be swapped, and keeps it; it serves small arrays,
        for which the host need not wait.
        """
        if x.nbytes < _LARGE or not x.dtype.isnative:
            return self._cupy.asarray(x)
        y = self._cupy.empty(x.shape, dtype=x.dtype)
        y.set(x)
        return y

    def synchronize(self) -> None:
        """Wait for all work on the current device."""
        self._cupy.cuda.Device().synchronize()


def _capability(device: Any) -> tuple[int, int]:
    digits = device.compute_capability  # "86" is 8.6
    return int(digits[:-1]), int(digits[-1])


def dotted(capability: tuple[int, int]) -> str:
    """Return 8.6 for (8, 6)."""
    return f"{capability[0]}.{capability[1]}"


def versions(cupy: Any) -> dict[str, str | None]:
    """Return the versions of CuPy, of the CUDA it was built for and of the CUDA that the driver knows, if any."""
    runtime = cupy.cuda.runtime
    return {
        "version": cupy.__version__,
        "cuda_runtime": _version(runtime.runtimeGetVersion()),
        "cuda_driver": _version(runtime.driverGetVersion()),
    }


def _version(number: int) -> str | None:
    """Return "12.8" for CUDA's 12080, None for the 0 of a driver that is not there."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
