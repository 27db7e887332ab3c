"""The array libraries: the library and the device of an array, and moves between them.

Every op calls `namespace(x, ...)` to get the library of its arguments and uses that library alone, so that the same
source runs on NumPy and on CuPy. `register_backend` adds a library; the tests add a strict stand-in this way. A library
is registered with an object that handles its devices: `CudaDevices` for CuPy, none for NumPy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.arrays.cuda import BFLOAT16_DEVICE, CudaDevices, dotted, import_cupy, versions
from minivit.arrays.dtypes import dtype_named, is_floating, real_dtype
from minivit.errors import UserError

__all__ = [
    "Array",
    "about_backends",
    "backend",
    "check_dtype",
    "devices",
    "dtype_named",
    "free_memory",
    "is_floating",
    "is_out_of_memory",
    "library_name",
    "namespace",
    "native",
    "on_device_of",
    "real_dtype",
    "register_backend",
    "synchronize",
    "to_backend",
    "to_host",
    "when_registered",
]

# CuPy's arrays have the same attributes; a type checker knows those of NumPy's.
Array: TypeAlias = NDArray[Any]

_libraries: dict[type, Any] = {np.ndarray: np, np.generic: np}
_backends: dict[str, Any] = {"numpy": np}
_devices: dict[str, Any] = {}
_waiting: dict[str, list[Callable[[], None]]] = {}


def register_backend(name: str, library: Any, array_type: type, devices: Any = None) -> None:
    """Register `library` for arrays of `array_type`, so that ``backend=name`` selects it.

    Parameters
    ----------
    name : str
        The name of the backend.
    library : module or object
        NumPy's functions under NumPy's names, and ``asnumpy(x)``, which copies to the host, as in CuPy.
    array_type : type
        The class of the library's arrays.
    devices : object, optional
        An object with some or all of the functions below; by default `library` itself.

    Notes
    -----
    ``select(index)`` returns a device, the current one for None. A device has an ``id``; it is current inside a
    ``with`` block, or from ``.use()`` on. ``listed()`` returns what `minivit.arrays.devices` returns. The others are
    about the current device: ``compute_capability()``, such as (8, 6), ``free_memory()``, ``synchronize()``, and
    ``upload(x)``, which copies a NumPy array to it.
    """
    _backends[name] = library
    _devices[name] = library if devices is None else devices
    _libraries[array_type] = library
    for callback in _waiting.pop(name, []):
        callback()


def when_registered(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once: now if a library is registered as `name`, otherwise when it is registered."""
    if name in _backends:
        callback()
    else:
        _waiting.setdefault(name, []).append(callback)


def backend(name: str) -> Any:
    """Return the array library called `name`; if `name` has a device, it becomes the current device of this thread.

    Parameters
    ----------
    name : str
        "numpy", "cupy" for the current device (initially device 0), or "cupy:1" for device 1. The first call for
        "cupy" imports CuPy.

    Raises
    ------
    UserError
        The library or device does not exist or cannot be used; the message says why.
    """
    library, device = _selected(name)
    if device is not None:
        device.use()
    return library


def _selected(name: str) -> tuple[Any, Any]:
    """Return the library called `name` and the selected device, or None if the library has no devices."""
    base, colon, index = name.partition(":")
    library = _registered(base)
    select = _device_function(library, "select")
    if colon and select is None:
        raise UserError(f"backend {name!r}: {base} has no devices to choose from; use {base!r}")
    if colon and not (index.isascii() and index.isdecimal()):
        raise UserError(f"backend {name!r}: {index!r} is not the index of a device; expected such as '{base}:0'")
    return library, select(int(index) if colon else None) if select else None


def _registered(name: str) -> Any:
    if name == "cupy" and name not in _backends:
        cupy = import_cupy()
        register_backend(name, cupy, cupy.ndarray, CudaDevices(cupy))
    if name not in _backends:
        raise UserError(f"unknown backend {name!r}; expected 'numpy', 'cupy' or, for device 1, 'cupy:1'")
    return _backends[name]


def _device_function(library: Any, name: str) -> Any:
    """Return the function called `name` that was registered for the devices of `library`, or None."""
    return getattr(_devices.get(library_name(library)), name, None)


def devices(name: str = "cupy") -> list[dict[str, Any]]:
    """Return the devices of a backend: the index, name, memory in bytes and compute capability of each.

    Raises
    ------
    UserError
        The backend cannot be used; the message says why.
    """
    listed = _device_function(_registered(name), "listed")
    return listed() if listed else []


def about_backends() -> dict[str, dict[str, Any]]:
    """Return for each backend its `version`, its `devices`, and the `reason` why it cannot be used, or None."""
    about: dict[str, dict[str, Any]] = {}
    for name in sorted({*_backends, "cupy"}):
        facts = about[name] = {"version": None, "devices": [], "reason": None}
        try:
            facts.update(versions(import_cupy()) if name == "cupy" else {})
            facts["devices"] = devices(name)
            facts["version"] = getattr(_backends[name], "__version__", None)
        except UserError as error:
            facts["reason"] = str(error)
    return about


def on_device_of(x: Any) -> AbstractContextManager[Any]:
    """Return a context manager in which the device of `x` is the current one; on the host it does nothing."""
    device = getattr(x, "device", None)
    return device if isinstance(device, AbstractContextManager) else nullcontext()


def synchronize(library: Any) -> None:
    """Wait until the current device of `library` has finished its work; on the host there is nothing to wait for."""
    wait = _device_function(library, "synchronize")
    if wait:
        wait()


def free_memory(library: Any) -> int | None:
    """Return how many bytes can still be allocated on the current device, or None if this is unknown."""
    free = _device_function(library, "free_memory")
    return free() if free else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` reports a failed allocation, on a device or on the host."""
    words = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def check_dtype(library: Any, dtype: Any) -> None:
    """Raise UserError unless the current device of `library` supports `dtype`."""
    capability = _device_function(library, "compute_capability")
    if capability and np.dtype(dtype).name == "bfloat16" and capability() < BFLOAT16_DEVICE:
        raise UserError(
            f"this device has compute capability {dotted(capability())}, but bfloat16 needs "
            f"{dotted(BFLOAT16_DEVICE)}; use float16 or float32"
        )


def _library(x: object) -> Any:
    _refuse_masked(x)
    for cls in type(x).__mro__:
        if cls in _libraries:
            return _libraries[cls]
    if type(x).__module__.partition(".")[0] == "cupy" and "cupy" in sys.modules:
        return backend("cupy")
    raise TypeError(f"expected an array of NumPy or CuPy, got {type(x).__name__}; convert it with numpy.asarray")


def native(x: Any) -> Any:
    """Return a NumPy array as a plain one in this machine's byte order, copied if it has another; all else as it is.

    Raises
    ------
    TypeError
        `x` is a masked array: its mask would be ignored.
    """
    if type(x) is not np.ndarray:
        if not isinstance(x, np.ndarray):
            return x
        _refuse_masked(x)
        x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _refuse_masked(x: object) -> None:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("got a masked array, whose mask would be ignored; use x.filled(value) or x.compressed()")


def _refuse_foreign(x: object) -> None:
    """Raise TypeError for a NumPy array that is computed with in another way than a plain one."""
    if isinstance(x, np.matrix):
        raise TypeError("got a numpy.matrix, whose * is a matrix product; convert it with numpy.asarray")
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        name = x.dtype.newbyteorder("=").name
        raise TypeError(f"got an array of dtype {x.dtype.str!r}, in foreign byte order; use x.astype({name!r})")


def _place(x: Any) -> tuple[Any, Any]:
    """Return the library of `x` and the index of its device, or None on the host."""
    library = _library(x)
    device = None if library is np else getattr(x, "device", 0)
    return library, getattr(device, "id", device)


def namespace(*arrays: Any) -> Any:
    """Return the array library of `arrays`, which must all be of one library and on one device.

    Raises
    ------
    TypeError
        An argument is not an array, or is a masked array, a matrix, or in the byte order of another machine; or two
        arrays belong to different libraries or devices.
    """
    for x in arrays:
        if type(x) is not np.ndarray or not x.dtype.isnative:
            break
    else:
        return np
    for x in arrays:
        _refuse_foreign(x)
    first = _place(arrays[0])
    for other in arrays[1:]:
        place = _place(other)
        if place != first:
            raise TypeError(
                f"cannot mix arrays of {_described(first)} and {_described(place)}; move one with minivit.to_backend"
            )
    return first[0]


def _described(place: tuple[Any, Any]) -> str:
    library, index = place
    return f"{library_name(library)} on {'the host' if index is None else f'device {index}'}"


def library_name(library: Any) -> str:
    """Return the name under which `library` was registered."""
    return next(name for name, known in _backends.items() if known is library)


def to_host(x: Any) -> Array:
    """Return `x` as a NumPy array, copied if it is on a device."""
    library = _library(x)
    host: Array = native(np.asarray(x)) if library is np else library.asnumpy(x)
    return host


def to_backend(x: Any, library: Any) -> Array:
    """Return `x` as an array of `library`, copied only if it belongs to another library or device.

    Parameters
    ----------
    x : array
        Of any library.
    library : module or str
        A library, or the name of a backend: "numpy", "cupy" or "cupy:1". An array of another library is copied to the
        current device. "cupy:1" copies to device 1, and leaves the current device as it is.
    """
    if isinstance(library, str):
        name = library
        library, device = _selected(name)
        if ":" in name:
            with device:
                return x if _place(x) == (library, device.id) else _uploaded(x, library)
    if _library(x) is library:
        return to_host(x) if library is np else x
    return _uploaded(x, library)


def _uploaded(x: Any, library: Any) -> Array:
    moved: Array = (_device_function(library, "upload") or library.asarray)(to_host(x))
    return moved
