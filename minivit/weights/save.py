"""Save a model in any layout, with its configuration inside the file."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError, install
from minivit.files import atomic_write, delete, write_json
from minivit.nn.layer import Layer
from minivit.nn.vit import ViT
from minivit.weights.entries import exported
from minivit.weights.formats import layout_named
from minivit.weights.own_layers import own_layers
from minivit.weights.source import FILE, KEY
from minivit.weights.tensors import write_tensors

_SIDE_FILES = {"config.json", "preprocessor_config.json"}  # beside `FILE`
_LARGEST_ONNX = (1 << 31) - (1 << 24)  # bytes of float32 parameters: the whole file has less than 2 GiB


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
        A file ``*.safetensors`` (``*.npz`` for Google's layout, ``*.onnx`` for ONNX), or a folder, in which the file is
        ``model.safetensors``. Missing folders are created. timm and transformers open a folder, not a file of another
        name, so that there is no ``config.json`` beside such a file. Where a ``model.safetensors`` is replaced, the
        ``config.json`` and ``preprocessor_config.json`` beside it are replaced or deleted with it.
    format : str
        Whose names and shapes: "timm", in which every model can be stored, or another layout of docs/model_files.md; or
        "onnx" for a graph that ONNX Runtime computes, in float32. It cannot be read again.
    extra : mapping, optional
        Further values to store, which must be valid JSON; `model_metadata` returns them. ``class_names``, ``mean``,
        ``std``, ``crop_pct``, ``crop_mode`` ("center" or "squash") and ``interpolation`` are also written for timm and
        transformers, and `minivit predict` follows them.

    Raises
    ------
    UserError
        The format or the suffix of the file is unknown, the format cannot express the model or hold as much, or `extra`
        is not valid JSON.
    RunError
        The file cannot be written; an existing file is not changed.

    Notes
    -----
    The layer norms of timm have an eps of 1e-6, which ``config.json`` cannot change. For a model with another eps, timm
    refuses the folder unless ``norm_layer`` is passed: ``partial(timm.layers.LayerNorm, eps=1e-5)``.
    """
    if not isinstance(model, ViT):
        raise UserError(
            f"save_model was given a {type(model).__name__}; expected a ViT: save_masked_model writes models for "
            "masked pre-training, and save_model(model.encoder, path) their encoder"
        )
    if format == "onnx":
        _save_onnx(model, file_at(Path(path), ".onnx", format), dict(extra or {}))
        return
    layout = layout_named(format)
    path = file_at(Path(path), layout.suffix, format)
    state = savable_state(model)
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
    text = as_json(own)
    tensors = exported(state, layout.entries(model))
    if layout.suffix == ".npz":
        from minivit.weights.npz import write_npz

        write_npz(path, tensors, text)
        return
    # Other programs could not build the layers of a user's own.
    files = {"config.json": {}} if layers else layout.side_files(model.config, own["extra"])
    has_replaced = path.exists()
    write_tensors(path, tensors, {"format": "pt", KEY: text})
    if path.name != FILE:
        return
    for name, content in files.items():
        # In transformers' file it would outlive a change that transformers makes to the model.
        repeated = {KEY: own} if name == "config.json" and format == "timm" else {}
        write_json(path.with_name(name), content | repeated)
    for name in _SIDE_FILES - files.keys() if has_replaced else ():  # of the model that was here before
        delete(path.with_name(name))


def file_at(path: Path, suffix: str, chosen: str) -> Path:
    """Return the file to write: `path`, or that in the folder `path`."""
    if path.suffix.lower() == suffix and not path.is_dir():
        return path
    if path.suffix and not path.is_dir():
        raise UserError(f"{path} is not the name of a model file in the format {chosen!r}; it must end in {suffix}")
    return path / f"model{suffix}"


def savable_state(model: Layer) -> dict[str, Array]:
    """Return the values of a model by name, on the host, or raise UserError if they are not float32 or float64."""
    state = model.state_dict()
    dtypes = {value.dtype for value in state.values()}
    if not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise UserError(f"a model of {', '.join(map(str, dtypes))} cannot be saved; use astype('float64') or float32")
    return state


def as_json(value: object) -> str:
    """Return the JSON text for the metadata of a file, or raise UserError."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"extra can hold strings, finite numbers, lists and dicts: {error}") from error


def _save_onnx(model: ViT, path: Path, extra: Mapping[str, Any]) -> None:
    """Write the graph of a model, with the values of `extra` in its metadata: texts as they are, others as JSON."""
    texts = {name: value if isinstance(value, str) else as_json(value) for name, value in extra.items()}
    if layers := own_layers(model, model.config):
        raise UserError(f"the format 'onnx' cannot express a layer of your own as {', '.join(layers)}")
    if (size := 4 * model.parameters.count) > _LARGEST_ONNX:
        raise UserError(
            f"the format 'onnx' holds less than 2 GiB, and the parameters of this model take {size / 2**30:.1f} GiB; "
            "save it in the format 'timm'"
        )
    try:
        import onnx

        from minivit.weights.onnx_layers import onnx_model
    except ImportError as error:
        raise UserError(f"the format 'onnx' needs the package onnx: {install('onnx')}") from error
    host = ViT.without_values(model.config)
    host.initialize(None, "float32")
    host.load_state_dict({name: value.astype(np.float32) for name, value in model.state_dict().items()})
    proto = onnx_model(host)
    onnx.helper.set_model_props(proto, texts)
    content = proto.SerializeToString(deterministic=True)
    atomic_write(path, lambda file: file.write(content))
