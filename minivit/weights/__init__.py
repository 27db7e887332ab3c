"""Model files: safetensors in timm's layout with the configuration inside, and config.json beside it for timm.

The configuration stands in the safetensors file itself, so that model and configuration are replaced in one rename.
config.json repeats it in timm's terms, and ``timm.create_model("local-dir:FOLDER", pretrained=True)`` builds the same
model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minivit.errors import UserError
from minivit.files import read_json, write_json
from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT
from minivit.weights import timm
from minivit.weights.tensors import read_about, read_tensors, write_tensors

__all__ = ["load_model", "model_metadata", "read_tensors", "save_model", "write_tensors"]

FILE = "model.safetensors"
_KEY = "minivit"


def save_model(
    model: ViT,
    path: str | os.PathLike[str],
    format: str = "timm",  # noqa: A002 - the word that users know
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a file, and ``config.json`` beside it.

    Parameters
    ----------
    model : ViT
        In float32 or float64; the file holds its values to the bit.
    path : path
        A file ``*.safetensors``, or a folder for ``model.safetensors`` in it. Missing folders are made.
    format : str
        "timm": its names and shapes.
    extra : mapping, optional
        What else to keep, as JSON has it; `model_metadata` returns it. ``class_names``, ``mean`` and ``std`` are
        for timm too.

    Raises
    ------
    UserError
        The format or the file's ending is unknown, or `extra` is nothing that JSON has.
    RunError
        The file cannot be written; the old one, if any, is intact.

    Notes
    -----
    timm has the layer norms' eps of 1e-6 unless it is told otherwise, which ``config.json`` cannot. For another eps it
    refuses the folder until ``norm_layer`` is passed: ``partial(timm.layers.LayerNorm, eps=1e-5)``.
    """
    path = Path(path)
    if format != "timm":
        raise UserError(f"unknown format {format!r}; expected 'timm'")
    if path.suffix != ".safetensors":
        if path.suffix and not path.is_dir():
            raise UserError(f"cannot tell what {path} is to be; a model file ends in .safetensors")
        path = path / FILE
    state = model.state_dict()
    dtypes = {value.dtype for value in state.values()}
    if not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise UserError(f"a model of {', '.join(map(str, dtypes))} cannot be saved; use astype('float64') or float32")
    own = {"config": model.config.to_dict(), "extra": dict(extra or {})}
    try:
        about = {"format": "pt", _KEY: json.dumps(own, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise UserError(f"extra can hold texts, finite numbers, lists and dicts: {error}") from error
    config = timm.config_json(model.config, own["extra"]) | {_KEY: own}
    write_tensors(path, {name: timm.exported(name, value, model.config) for name, value in state.items()}, about)
    write_json(path.with_name("config.json"), config)


def load_model(path: str | os.PathLike[str], dtype: Any = "float32", backend: str = "numpy", **fields: Any) -> ViT:
    """Read a model from a safetensors file: ours, or any of a Vision Transformer of timm.

    Parameters
    ----------
    path : path
        The file, a folder with ``model.safetensors``, or the folder of a run, whose best model it is then.
    dtype : dtype
        "float32" or "float64": what the values are converted to.
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    **fields
        Fields of `ViTConfig` to replace, such as ``drop_path_rate=0.1``, or to say what the files do not: without
        ``config.json`` a model of timm tells its sizes by its shapes, but not ``num_heads``, ``act_layer``,
        ``norm_eps``, nor a non-square ``img_size``.

    Raises
    ------
    UserError
        The file is missing, truncated, of another kind, or does not agree with its configuration; or `fields` do not.

    Warns
    -----
    UserWarning
        Something had to be assumed; it says what.
    """
    path = _model_file(path)
    tensors, about = read_tensors(path)
    own, config_json = _own(path, about), _config_json(path)
    if own is not None:
        config = _config(path, {**own["config"], **fields})
    else:
        config = _config(path, timm.config_fields(path, tensors, config_json, fields))
    timm.check_sizes(path, tensors, config)
    model = ViT(config, seed=None, dtype=dtype, backend=backend)
    model.load_state_dict(timm.imported(path, tensors, model))
    return model


def model_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what was saved with a model as `extra`: ``class_names``, ``mean``, ``std`` and the like.

    Of a file of timm, it is those three, as far as ``config.json`` has them. `path` is as in `load_model`.

    Raises
    ------
    UserError
        There is no such file, or it cannot be read.
    """
    path = _model_file(path)
    own = _own(path, read_about(path))
    return dict(own["extra"]) if own is not None else timm.preprocessing(_config_json(path))


def _model_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"there is no file {path}; expected a .safetensors file, or a folder with {FILE}")
        return path
    for candidate in (path / FILE, path / "best" / FILE):
        if candidate.exists():
            return candidate
    raise UserError(f"the folder {path} holds no model: expected {FILE} in it, or best/{FILE} as in a run")


def _config_json(path: Path) -> dict[str, Any]:
    beside = path.with_name("config.json")
    return read_json(beside) if beside.exists() else {}


def _own(path: Path, about: Mapping[str, str]) -> dict[str, Any] | None:
    """Return our configuration and extras from inside the file, or else from config.json, or None."""
    beside = _config_json(path).get(_KEY)
    try:
        own = json.loads(about[_KEY]) if _KEY in about else beside
    except ValueError as error:
        raise UserError(f"{path}: the configuration inside it is damaged: {error}") from error
    if own is None:
        return None
    if not (isinstance(own, dict) and isinstance(own.get("config"), dict) and isinstance(own.get("extra"), dict)):
        raise UserError(f"{path}: its configuration is not what minivit writes; the file is damaged")
    if beside is not None and (not isinstance(beside, dict) or beside.get("config") != own["config"]):
        raise UserError(
            f"{path.with_name('config.json')} describes another model than {path.name} does itself; "
            "keep each model in a folder of its own, or remove that config.json to go by the model file"
        )
    return own


def _config(path: Path, values: dict[str, Any]) -> ViTConfig:
    try:
        return ViTConfig.from_dict(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its configuration cannot be used: {error}") from error
