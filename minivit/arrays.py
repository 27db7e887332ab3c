"""Which array library an array belongs to, where it lives, and what may be mixed.

Every op asks `namespace(x, ...)` for the library of its arguments and then speaks only to it, so that the same source
runs on NumPy and on CuPy. A library joins by `register_backend`; the tests register a strict stand-in this way.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.errors import UserError

# CuPy's arrays offer the same attributes; this is the type that a checker can look into.
Array: TypeAlias = NDArray[Any]

_libraries: dict[type, Any] = {np.ndarray: np, np.generic: np}
_backends: dict[str, Any] = {"numpy": np}


def register_backend(name: str, library: Any, array_type: type) -> None:
    """Let arrays of `array_type` be served by `library`, selected as ``backend=name``.

    The library offers NumPy's functions under NumPy's names, and ``asnumpy(x)`` to copy to the host, as CuPy does.
    """
    _backends[name] = library
    _libraries[array_type] = library


def backend(name: str) -> Any:
    """Return the array library called `name`, importing CuPy only when it is asked for."""
    if name == "cupy" and name not in _backends:
        try:
            cupy = importlib.import_module("cupy")
        except ImportError as error:
            raise UserError(
                f"backend 'cupy' needs CuPy, which does not import here ({error}); "
                "install the wheel for your CUDA version, or use backend='numpy'"
            ) from error
        register_backend("cupy", cupy, cupy.ndarray)
    if name not in _backends:
        raise UserError(f"unknown backend {name!r}; expected 'numpy' or 'cupy'")
    return _backends[name]


def available_backends() -> list[str]:
    """Return the names of the backends whose library is installed."""
    return sorted({*_backends, *(["cupy"] if importlib.util.find_spec("cupy") else [])})


def _library(x: object) -> Any:
    for cls in type(x).__mro__:
        if cls in _libraries:
            return _libraries[cls]
    if type(x).__module__.partition(".")[0] == "cupy" and "cupy" in sys.modules:
        return backend("cupy")
    raise TypeError(f"expected an array of NumPy or CuPy, got {type(x).__name__}; numpy.asarray makes one")


def _place(x: Any) -> tuple[Any, str]:
    library = _library(x)
    return library, "host" if library is np else f"device {getattr(x, 'device', 0)}"


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
    first = arrays[0]
    library, device = _place(first)
    for other in arrays[1:]:
        if _place(other) != (library, device):
            names = [f"{library_name(lib)} on the {where}" for lib, where in ((library, device), _place(other))]
            raise TypeError(f"cannot mix arrays of {names[0]} and {names[1]}; move one with minivit.to_backend")
    return library


def library_name(library: ModuleType) -> str:
    """Return the name under which a library was registered."""
    return next(name for name, known in _backends.items() if known is library)


def to_host(x: Any) -> Array:
    """Return `x` as a NumPy array, copying it from its device if it lives on one."""
    library = _library(x)
    host: Array = np.asarray(x) if library is np else library.asnumpy(x)
    return host


def to_backend(x: Any, library: Any) -> Array:
    """Return `x` as an array of `library`, a module or a backend's name; copied only if it lives in another one."""
    library = backend(library) if isinstance(library, str) else library
    if _library(x) is library:
        return np.asarray(x) if library is np else x
    moved: Array = library.asarray(to_host(x))
    return moved


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the real dtype of the same precision: float64 for complex128, itself for a real one."""
    return np.dtype(dtype).type(0).real.dtype
