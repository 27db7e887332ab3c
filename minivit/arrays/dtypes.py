"""Rules for dtypes, including bfloat16, which the package ml_dtypes adds to NumPy."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from minivit.errors import UserError, install


def is_floating(dtype: Any) -> bool:
    """Return whether `dtype` is floating point, real or complex; bfloat16 counts."""
    dtype = np.dtype(dtype)
    return dtype.kind in "fc" or dtype.name == "bfloat16"


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the real dtype of the same precision: float64 for complex128, and a real dtype itself."""
    return np.dtype(dtype).type(0).real.dtype


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the dtype called `name`; "bfloat16" imports ml_dtypes.

    Raises
    ------
    UserError
        There is no such dtype, or ml_dtypes is not installed.
    """
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    except ImportError as error:
        raise UserError(f"bfloat16 needs ml_dtypes, which is not installed: {install('ml_dtypes')}") from error
    except TypeError as error:
        raise UserError(f"unknown dtype {name!r}; expected such as 'float32' or 'bfloat16'") from error
