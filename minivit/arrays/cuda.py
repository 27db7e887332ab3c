"""The import of CuPy and its devices, with an error message for each reason why they cannot be used.

No other module of this package imports CuPy.
"""

from __future__ import annotations

import importlib
from typing import Any

from minivit.errors import UserError, install

OLDEST_CUPY = 14  # the first major version with arrays of bfloat16
OLDEST_DEVICE = (7, 0)  # the lowest compute capability for which the kernels compile
OLDEST_DEVICE_13 = (7, 5)  # the same with CUDA 13
BFLOAT16_DEVICE = (8, 0)
_LARGE = 1 << 24  # bytes; arrays from this size on are copied without pinned memory
OR_NUMPY = "or use backend='numpy'"


def one_line(error: BaseException) -> str:
    """Return the text of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def wheels() -> str:
    """Return the advice on how to install CuPy."""
    return f"{install('cupy-cuda12x[ctk]', 'ml_dtypes')}, or cupy-cuda13x[ctk] for a driver that supports CUDA 13,"


def import_cupy() -> Any:
    """Return the module cupy; raise UserError if it is missing, cannot be imported or is too old."""
    try:
        cupy = importlib.import_module("cupy")
        version = cupy.__version__  # missing in an empty folder that a removed CuPy left behind
    except Exception as error:  # a wheel for another machine can fail in any way
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            raise UserError(f"backend 'cupy' needs CuPy, which is not installed: {wheels()} {OR_NUMPY}") from error
        reason = one_line(error.__cause__ or error)  # CuPy's own message is a page of advice
        raise UserError(
            f"backend 'cupy': CuPy is installed but cannot be imported ({reason}); uninstall it and "
            f"{wheels()} {OR_NUMPY}"
        ) from error
    if int(version.partition(".")[0]) < OLDEST_CUPY:
        raise UserError(
            f"backend 'cupy': CuPy {version} is too old, minivit needs version {OLDEST_CUPY}: {wheels()} {OR_NUMPY}"
        )
    return cupy


class CudaDevices:
    """The devices of CuPy.

    Raises
    ------
    UserError
        There is no device, or a library of CUDA is missing.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._count = self._counted()
        try:
            cupy.cuda.nvrtc.getVersion()
            cupy.cuda.cublas  # noqa: B018 - loaded at the first access
        except Exception as error:
            raise UserError(
                f"backend 'cupy': a library of CUDA cannot be loaded ({one_line(error)}); {wheels()} {OR_NUMPY}"
            ) from error

    def _counted(self) -> int:
        runtime = self._cupy.cuda.runtime
        try:
            count = int(runtime.getDeviceCount())
            reason = "" if count else "cudaErrorNoDevice"
        except runtime.CUDARuntimeError as error:
            count, reason = 0, one_line(error)
        if count:
            return count
        driver = _version(runtime.driverGetVersion())
        if "InsufficientDriver" in reason and driver is None:
            raise UserError(f"backend 'cupy': there is no NVIDIA driver here; install one, {OR_NUMPY}")
        if "InsufficientDriver" in reason:
            raise UserError(
                f"backend 'cupy': the NVIDIA driver supports CUDA {driver}, but this CuPy needs CUDA "
                f"{_version(runtime.runtimeGetVersion())}; update the driver, install CuPy for its CUDA, {OR_NUMPY}"
            )
        if "NoDevice" in reason:
            raise UserError(
                "backend 'cupy': the NVIDIA driver finds no device; run `nvidia-smi`, "
                f"check whether CUDA_VISIBLE_DEVICES hides it, {OR_NUMPY}"
            )
        raise UserError(f"backend 'cupy': CUDA cannot start ({reason}); run `nvidia-smi`, {OR_NUMPY}")

    def listed(self) -> list[dict[str, Any]]:
        """Return the devices; see `minivit.arrays.devices`."""
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
        """Return the device with this index, or the current one for None; raise UserError if kernels cannot run on it.

        The result is not made current.
        """
        if index is not None and index >= self._count:
            known = ", ".join(f"{device['index']} ({device['name']})" for device in self.listed())
            raise UserError(f"backend 'cupy:{index}': there is no device {index}; the devices are {known}")
        runtime = self._cupy.cuda.runtime
        try:
            device = self._cupy.cuda.Device(index)
            found = _capability(device)
            with device:
                runtime.free(0)  # creates the context of the device
        except runtime.CUDARuntimeError as error:
            raise UserError(
                f"backend 'cupy': the device cannot be used ({one_line(error)}); run `nvidia-smi`, check whether "
                f"another process uses its memory or has exclusive access, {OR_NUMPY}"
            ) from error
        oldest = OLDEST_DEVICE_13 if runtime.runtimeGetVersion() >= 13000 else OLDEST_DEVICE
        if found < oldest:
            raise UserError(
                f"backend 'cupy': {self.listed()[device.id]['name']} has compute capability {dotted(found)}; "
                f"minivit's kernels need {dotted(oldest)}: choose another device, {OR_NUMPY}"
            )
        return device

    def compute_capability(self) -> tuple[int, int]:
        """Return the compute capability of the current device."""
        return _capability(self._cupy.cuda.Device())

    def free_memory(self) -> int:
        """Return how many bytes can still be allocated: free memory, and unused memory in CuPy's pool."""
        pool = self._cupy.get_default_memory_pool()
        free = self._cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
        limit = pool.get_limit()
        return int(min(free, limit - pool.used_bytes()) if limit else free)

    def upload(self, x: Any) -> Any:
        """Return a copy of the NumPy array `x` on the current device.

        CuPy's asarray copies through pinned memory of the array's size and keeps that memory. It is used for small
        arrays, since the host need not wait for the copy.
        """
        if x.nbytes < _LARGE:
            return self._cupy.asarray(x)
        y = self._cupy.empty(x.shape, dtype=x.dtype)
        y.set(x)
        return y

    def synchronize(self) -> None:
        """Wait until the current device has finished its work."""
        self._cupy.cuda.Device().synchronize()


def _capability(device: Any) -> tuple[int, int]:
    digits = device.compute_capability  # "86" is 8.6
    return int(digits[:-1]), int(digits[-1])


def dotted(capability: tuple[int, int]) -> str:
    """Return 8.6 for (8, 6)."""
    return f"{capability[0]}.{capability[1]}"


def versions(cupy: Any) -> dict[str, str | None]:
    """Return the versions of CuPy, of the CUDA it was built for and of the CUDA that the driver supports."""
    runtime = cupy.cuda.runtime
    return {
        "version": cupy.__version__,
        "cuda_runtime": _version(runtime.runtimeGetVersion()),
        "cuda_driver": _version(runtime.driverGetVersion()),
    }


def _version(number: int) -> str | None:
    """Return "12.8" for CUDA's 12080, and None for 0, which stands for a missing driver."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None
