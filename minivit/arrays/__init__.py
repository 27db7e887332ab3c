"""Which array library an array belongs to, where it lives, and what may be mixed.

Every op asks `namespace(x, ...)` for the library of its arguments and then speaks only to it, so that the same source
runs on NumPy and on CuPy. A library joins by `register_backend`; the tests register a strict stand-in this way.
Questions about devices go to what the library registered to answer them: `CudaDevices` for CuPy, nothing for NumPy.
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
    "on_device_of",
    "real_dtype",
    "register_backend",
    "synchronize",
    "to_backend",
    "to_host",
    "when_registered",
]

# CuPy's arrays offer the same attributes; this is the type that a checker can look into.
Array: TypeAlias = NDArray[Any]

_libraries: dict[type, Any] = {np.ndarray: np, np.generic: np}
_backends: dict[str, Any] = {"numpy": np}
_devices: dict[str, Any] = {}
_waiting: dict[str, list[Callable[[], None]]] = {}


def register_backend(name: str, library: Any, array_type: type, devices: Any = None) -> None:
    """Let arrays of `array_type` be served by `library`, selected as ``backend=name``.

    The library offers NumPy's functions under NumPy's names, and ``asnumpy(x)`` to copy to the host, as CuPy does.
    For its devices answers `devices`, by default the library itself, as far as it has these functions:
    ``select(index)`` returns that device, for None the current one, with an ``id``, which ``with`` makes current for a
    while and ``.use()`` for good; ``listed()`` returns what `devices` does; ``compute_capability()``, such as (8, 6),
    ``free_memory()`` and ``synchronize()`` are about the current device, to which ``upload(x)`` copies a NumPy array.
    """
    _backends[name] = library
    _devices[name] = library if devices is None else devices
    _libraries[array_type] = library
    for callback in _waiting.pop(name, []):
        callback()


def when_registered(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once, as soon as a library is registered as `name`: at once, if it is already."""
    if name in _backends:
        callback()
    else:
        _waiting.setdefault(name, []).append(callback)


def backend(name: str) -> Any:
    """Return the array library called `name`; a device that it names becomes the current one of this thread.

    Parameters
    ----------
    name : str
        "numpy"; "cupy" for the current device, at first number 0; "cupy:1" for number 1. CuPy is imported when it is
        first asked for.

    Raises
    ------
    UserError
        There is no such library or device, or it cannot be used; the message says why.
    """
    library, device = _selected(name)
    if device is not None:
        device.use()
    return library


def _selected(name: str) -> tuple[Any, Any]:
    """Return the library called `name` and its device, or None if it has none to choose from."""
    base, colon, index = name.partition(":")
    library = _registered(base)
    select = _answer(library, "select")
    if colon and select is None:
        raise UserError(f"backend {name!r}: {base} has no devices to choose from; write {base!r}")
    if colon and not (index.isascii() and index.isdecimal()):
        raise UserError(f"backend {name!r}: {index!r} is no device's index; write it as in '{base}:0'")
    return library, select(int(index) if colon else None) if select else None


def _registered(name: str) -> Any:
    if name == "cupy" and name not in _backends:
        cupy = import_cupy()
        register_backend(name, cupy, cupy.ndarray, CudaDevices(cupy))
    if name not in _backends:
        raise UserError(f"unknown backend {name!r}; expected 'numpy', 'cupy' or, for device 1, 'cupy:1'")
    return _backends[name]


def _answer(library: Any, question: str) -> Any:
    """Return the function that answers a question about the devices of `library`, or None."""
    return getattr(_devices.get(library_name(library)), question, None)


def devices(name: str = "cupy") -> list[dict[str, Any]]:
    """Return the devices of a backend, each with its index, name, memory in bytes and compute capability.

    Raises
    ------
    UserError
        The backend cannot be used; the message says why.
    """
    listed = _answer(_registered(name), "listed")
    return listed() if listed else []


def about_backends() -> dict[str, dict[str, Any]]:
    """Return by name of each backend its `version`, its `devices`, and the `reason` why it cannot be used, or None."""
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
    """Return a context manager under which the device of `x` is the current one; on the host, it does nothing."""
    device = getattr(x, "device", None)
    return device if isinstance(device, AbstractContextManager) else nullcontext()


def synchronize(library: Any) -> None:
    """Wait until the current device of `library` has done all its work; the host is never behind."""
    wait = _answer(library, "synchronize")
    if wait:
        wait()


def free_memory(library: Any) -> int | None:
    """Return how many bytes an allocation on the current device could still get, or None if nobody knows."""
    free = _answer(library, "free_memory")
    return free() if free else None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` says that there was too little memory, on a device or on the host."""
    words = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def check_dtype(library: Any, dtype: Any) -> None:
    """Raise UserError unless the current device of `library` computes in `dtype`."""
    capability = _answer(library, "compute_capability")
    if capability and np.dtype(dtype).name == "bfloat16" and capability() < BFLOAT16_DEVICE:
        raise UserError(
            f"this device has compute capability {dotted(capability())}, but bfloat16 needs "
            f"{dotted(BFLOAT16_DEVICE)}; use float16 or float32"
        )


def _library(x: object) -> Any:
    for cls in type(x).__mro__:
        if cls in _libraries:
            return _libraries[cls]
    if type(x).__module__.partition(".")[0] == "cupy" and "cupy" in sys.modules:
        return backend("cupy")
    raise TypeError(f"expected an array of NumPy or CuPy, got {type(x).__name__}; numpy.asarray makes one")


def _place(x: Any) -> tuple[Any, Any]:
    """Return the library of `x` and the index of its device, or None on the host."""
    library = _library(x)
    device = None if library is np else getattr(x, "device", 0)
    return library, getattr(device, "id", device)


def namespace(*arrays: Any) -> Any:
    """Return the array library of `arrays`, which must all live in the same one and on the same device.

    Raises
    ------
    TypeError
        Something is not an array, or two arrays belong to different libraries or devices.
    """
    for x in arrays:
        if type(x) is not np.ndarray:
            break
    else:
        return np
    first = _place(arrays[0])
    for other in arrays[1:]:
        place = _place(other)
        if place != first:
            raise TypeError(f"cannot mix arrays of {_said(first)} and {_said(place)}; move one with minivit.to_backend")
    return first[0]


def _said(place: tuple[Any, Any]) -> str:
    library, index = place
    return f"{library_name(library)} on the {'host' if index is None else f'device {index}'}"


def library_name(library: Any) -> str:
    """Return the name under which a library was registered."""
    return next(name for name, known in _backends.items() if known is library)


def to_host(x: Any) -> Array:
    """Return `x` as a NumPy array, copying it from its device if it lives on one."""
    library = _library(x)
    host: Array = np.asarray(x) if library is np else library.asnumpy(x)
    return host


def to_backend(x: Any, library: Any) -> Array:
    """Return `x` as an array of `library`, copied only if it lives elsewhere.

    Parameters
    ----------
    x : array
        Of any library.
    library : module or str
        A library, whose current device takes what comes from another one, or a backend's name: "numpy", "cupy" or,
        for device 1, which does not become current, "cupy:1".
    """
    if isinstance(library, str):
        name = library
        library, device = _selected(name)
        if ":" in name:
            with device:
                return x if _place(x) == (library, device.id) else _uploaded(x, library)
    if _library(x) is library:
        return np.asarray(x) if library is np else x
    return _uploaded(x, library)


def _uploaded(x: Any, library: Any) -> Array:
    moved: Array = (_answer(library, "upload") or library.asarray)(to_host(x))
    return moved
