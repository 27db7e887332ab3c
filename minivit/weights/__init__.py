"""Model files: safetensors in timm's layout that include the configuration, with a config.json for timm.

The configuration is part of the safetensors file, so that one rename replaces both model and configuration. config.json
repeats it in timm's terms: ``timm.create_model("local-dir:FOLDER", pretrained=True)`` builds the same model.
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
    format: str = "timm",  # noqa: A002 - the established name of this argument
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model to a file, and ``config.json`` to the same folder.

    Parameters
    ----------
    model : ViT
        A float32 or float64 model; its values are stored exactly.
    path : path
        A file ``*.safetensors``, or a folder, in which the file is ``model.safetensors``. Missing folders are created.
    format : str
        "timm": timm's names and shapes.
    extra : mapping, optional
        Further values to store, which must be valid JSON; `model_metadata` returns them. ``class_names``, ``mean`` and
        ``std`` are also written for timm.

    Raises
    ------
    UserError
        The format or the suffix of the file is unknown, or `extra` is not valid JSON.
    RunError
        The file cannot be written; an existing file is not changed.

    Notes
    -----
    The layer norms of timm have an eps of 1e-6, which ``config.json`` cannot change. For a model with another eps, timm
    refuses the folder unless ``norm_layer`` is passed: ``partial(timm.layers.LayerNorm, eps=1e-5)``.
    """
    path = Path(path)
    if format != "timm":
        raise UserError(f"unknown format {format!r}; expected 'timm'")
    if path.suffix != ".safetensors":
        if path.suffix and not path.is_dir():
            raise UserError(f"{path} is not the name of a model file; it must end in .safetensors")
        path = path / FILE
    state = model.state_dict()
    dtypes = {value.dtype for value in state.values()}
    if not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise UserError(f"a model of {', '.join(map(str, dtypes))} cannot be saved; use astype('float64') or float32")
    own = {"config": model.config.to_dict(), "extra": dict(extra or {})}
    try:
        about = {"format": "pt", _KEY: json.dumps(own, allow_nan=False)}
    except (TypeError, ValueError) as error:
        raise UserError(f"extra can hold strings, finite numbers, lists and dicts: {error}") from error
    config = timm.config_json(model.config, own["extra"]) | {_KEY: own}
    write_tensors(path, {name: timm.exported(name, value, model.config) for name, value in state.items()}, about)
    write_json(path.with_name("config.json"), config)


def load_model(path: str | os.PathLike[str], dtype: Any = "float32", backend: str = "numpy", **fields: Any) -> ViT:
    """Read a model from a safetensors file, written by minivit or holding a Vision Transformer of timm.

    Parameters
    ----------
    path : path
        The file, a folder with ``model.safetensors``, or a run folder, of which the best model is read.
    dtype : dtype
        "float32" or "float64", the dtype of the model.
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    **fields
        Fields of `ViTConfig` to replace, such as ``drop_path_rate=0.1``, or to supply. Without ``config.json``, the
        shapes of a timm model determine its sizes, but not ``num_heads``, ``act_layer``, ``norm_eps`` or an
        ``img_size`` that is not square.

    Raises
    ------
    UserError
        The file is missing, truncated or of another kind, or the tensors do not fit the configuration or `fields`.

    Warns
    -----
    UserWarning
        The files do not determine a field, and a default is used; the message names it.
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
    """Return the values that `save_model` stored as `extra`, such as ``class_names``, ``mean`` and ``std``.

    For a file of timm, return these three as far as ``config.json`` has them. `path` is as in `load_model`.

    Raises
    ------
    UserError
        The file does not exist or cannot be read.
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
    raise UserError(f"the folder {path} holds no model: expected {FILE} in it, or best/{FILE} in a run folder")


def _config_json(path: Path) -> dict[str, Any]:
    file = path.with_name("config.json")
    return read_json(file) if file.exists() else {}


def _own(path: Path, about: Mapping[str, str]) -> dict[str, Any] | None:
    """Return minivit's configuration and extra values from the model file, else from config.json, else None."""
    repeated = _config_json(path).get(_KEY)
    try:
        own = json.loads(about[_KEY]) if _KEY in about else repeated
    except ValueError as error:
        raise UserError(f"{path}: the configuration inside it is damaged: {error}") from error
    if own is None:
        return None
    if not (isinstance(own, dict) and isinstance(own.get("config"), dict) and isinstance(own.get("extra"), dict)):
        raise UserError(f"{path}: the configuration inside it has the wrong structure; the file is damaged")
    if repeated is not None and (not isinstance(repeated, dict) or repeated.get("config") != own["config"]):
        raise UserError(
            f"{path.with_name('config.json')} describes another model than {path.name}; "
            "keep each model in its own folder, or remove this config.json to use the configuration in the model file"
        )
    return own


def _config(path: Path, values: dict[str, Any]) -> ViTConfig:
    try:
        return ViTConfig.from_dict(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its configuration cannot be used: {error}") from error
