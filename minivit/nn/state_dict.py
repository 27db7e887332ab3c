"""The check of the values that a layer is given by `Layer.load_state_dict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minivit.arrays import Array, is_floating, namespace, native
from minivit.errors import UserError, counted
from minivit.nn.parameters import Parameter


def checked_state(state: object, named: Mapping[str, Parameter], dtype: np.dtype[Any]) -> dict[str, Array]:
    """Return the values in `state` for the parameters `named`, of `dtype`, in their order; byte orders are native.

    Raises
    ------
    UserError
        `state` is not a mapping, a name is missing or unknown, or a shape differs.
    TypeError
        A value is not an array of numbers, or is complex and `dtype` is not.
    """
    if not isinstance(state, Mapping):
        raise UserError(
            f"load_state_dict was given a {type(state).__name__}; expected a mapping of names to arrays, as "
            "state_dict() returns (files are read by minivit.load_model)"
        )
    if np.ndim(state.get("patch_embed.proj.weight", 0)) == 4:
        raise UserError("these are weights in timm's layout; minivit.load_model reads them from their file")
    for name, value in state.items():
        if name in named and np.shape(value) != named[name].shape:
            raise UserError(f"{name} has shape {np.shape(value)}; this model has {named[name].shape}")
    missing = [name for name in named if name not in state]
    unknown = [name for name in state if name not in named]
    if missing or unknown:
        words = [counted(names, what, what) for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise UserError(f"the weights belong to another model: {' and '.join(words)}")
    checked = {name: native(state[name]) for name in named}
    for name, value in checked.items():
        namespace(value)
        complex_to_real = value.dtype.kind == "c" and dtype.kind != "c"
        if complex_to_real or not (value.dtype.kind in "biu" or is_floating(value.dtype)):
            raise TypeError(f"{name} has dtype {value.dtype}; expected numbers of {dtype}")
    return checked
