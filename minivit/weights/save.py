"""Save a model in any layout, with its configuration inside the file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minivit.errors import UserError
from minivit.files import write_json
from minivit.nn.vit import ViT
from minivit.weights.entries import exported
from minivit.weights.formats import layout_named
from minivit.weights.own_layers import own_layers
from minivit.weights.source import FILE, KEY
from minivit.weights.tensors import write_tensors


def save_model(
    model: ViT,
    path: str | os.PathLike[str],
    format: str = "timm",  # noqa: A002 - the established name of this argument
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a file, and ``config.json`` to the folder of a file ``model.safetensors``.

    Parameters
    ----------
    model : ViT
        A float32 or float64 model; its values are stored exactly.
    path : path
        A file ``*.safetensors`` (``*.npz`` for Google's layout), or a folder, in which the file is
        ``model.safetensors``. Missing folders are created. timm and transformers open a folder, not a file of another
        name, so that there is no ``config.json`` beside such a file.
    format : str
        Whose names and shapes: "timm", in which every model can be stored, or another layout of docs/model_files.md.
    extra : mapping, optional
        Further values to store, which must be valid JSON; `model_metadata` returns them. ``class_names``, ``mean``,
        ``std``, ``crop_pct``, ``crop_mode`` ("center" or "squash") and ``interpolation`` are also written for timm and
        transformers, and `minivit predict` follows them.

    Raises
    ------
    UserError
        The format or the suffix of the file is unknown, the format cannot express the model, or `extra` is not valid
        JSON.
    RunError
        The file cannot be written; an existing file is not changed.

    Notes
    -----
    The layer norms of timm have an eps of 1e-6, which ``config.json`` cannot change. For a model with another eps, timm
    refuses the folder unless ``norm_layer`` is passed: ``partial(timm.layers.LayerNorm, eps=1e-5)``.
    """
    path, layout = Path(path), layout_named(format)
    if path.suffix != layout.suffix:
        if path.suffix and not path.is_dir():
            raise UserError(
                f"{path} is not the name of a model file in the format {format!r}; it must end in {layout.suffix}"
            )
        path /= FILE if layout.suffix == ".safetensors" else f"model{layout.suffix}"
    state = model.state_dict()
    dtypes = {value.dtype for value in state.values()}
    if not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise UserError(f"a model of {', '.join(map(str, dtypes))} cannot be saved; use astype('float64') or float32")
    own: dict[str, Any] = {"config": model.config.to_dict(), "extra": dict(extra or {})}
    layers = own_layers(model, model.config)
    if format != "timm":
        own["format"] = format
        refused = layout.refusals(model.config) + [f"a layer of your own as {name}" for name in layers]
        if refused:
            raise UserError(f"the format {format!r} cannot express {', '.join(refused)}; the format 'timm' can")
    if words := layout.caveat(model.config):
        warnings.warn(f"{words}: its results from {path} will differ a little", UserWarning, stacklevel=2)
    if layers:
        own["layers"] = layers
    try:
        text = json.dumps(own, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"extra can hold strings, finite numbers, lists and dicts: {error}") from error
    tensors = exported(state, layout.entries(model))
    if layout.suffix == ".npz":
        from minivit.weights.npz import write_npz

        write_npz(path, tensors, text)
        return
    # Other programs could not build the layers of a user's own.
    files = {"config.json": {}} if layers else layout.side_files(model.config, own["extra"])
    write_tensors(path, tensors, {"format": "pt", KEY: text})
    for name, content in files.items() if path.name == FILE else ():
        # In transformers' file it would outlive a change that transformers makes to the model.
        repeated = {KEY: own} if name == "config.json" and format == "timm" else {}
        write_json(path.with_name(name), content | repeated)
