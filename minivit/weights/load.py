"""Load a model from a file of any layout."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.config_checks import plain
from minivit.nn.vit import ViT
from minivit.weights.adapt import CHANGEABLE, adapted, adapted_config, expect_convention
from minivit.weights.deduce import image_pair
from minivit.weights.formats import layout_named, recognised
from minivit.weights.layout import Layout, WeightsFile, check_shapes, check_sizes, imported
from minivit.weights.masked_layout import MaskedLayout
from minivit.weights.of_run import expect_of_run
from minivit.weights.own_layers import Build, built
from minivit.weights.source import model_file, open_weights, own_part


def load_model(
    path: str | os.PathLike[str],
    dtype: Any = "float32",
    backend: str = "numpy",
    build: Build | None = None,
    resample: str = "timm",
    **fields: Any,
) -> ViT:
    """Read a model from a file that minivit or another program wrote; the file's layout is recognised.

    A prefix that all names of tensors have, such as ``module.`` of a wrapper, is taken off. Of a model for masked
    pre-training (`load_masked_model`) the encoder is read, without a head.

    Parameters
    ----------
    path : path
        A .safetensors or .npz file, one of PyTorch (.pt or .pth), the index of several .safetensors files, a folder
        with ``model.safetensors``, this index or ``pytorch_model.bin``, or a run folder, of which the best model is
        read.
    dtype : dtype
        "float32" or "float64", the dtype of the model.
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    build : callable, optional
        For a model with layers of a user's own: ``build(config)`` returns the model with these layers, whose values
        are then replaced; a subclass of `ViT` is such a function.
    resample : str
        How learned positions are resampled for another ``img_size``: "timm", by PyTorch's antialiased bicubic
        interpolation, or "google", linearly as in the original code (`minivit.weights.resample`).
    **fields
        Fields of `ViTConfig` to replace, such as ``drop_path_rate=0.1``, or to supply: what the shapes of a file of
        another program do not determine, such as ``num_heads``, ``act_layer`` or ``norm_eps``. With another
        ``num_classes`` than the file's, the whole head, its hidden layer included, is replaced by one linear layer of
        zeros; with another ``img_size``, learned positions are resampled.

    Raises
    ------
    UserError
        The file is missing, truncated, damaged or of another kind, or the tensors do not fit the configuration or
        `fields`. For layouts that are not read the message says whose they are and what to do.

    Warns
    -----
    UserWarning
        The files do not determine a field, and that of the family is assumed; the message names it.
    """
    opened = open_model_file(path, fields)
    return opened.load(opened.wanted(fields), dtype, backend, build, resample)


class OpenedFile(NamedTuple):
    """A model file of which only the headers were read, and the configuration of the model in it."""

    path: Path
    layout: Layout
    file: WeightsFile
    config: ViTConfig
    layers: Any

    def wanted(self, fields: Mapping[str, Any]) -> ViTConfig:
        """Return the configuration with another head or size of images, as `fields` say."""
        try:
            return adapted_config(self.config, fields)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.path} cannot be loaded for this: {error}") from error

    def load(
        self, config: ViTConfig, dtype: Any, backend: str, build: Build | None = None, resample: str = "timm"
    ) -> ViT:
        """Return the model with the values of the file; `config` is one that `wanted` returns, or differs in training.

        Raises
        ------
        UserError
            As `load_model`.
        """
        expect_convention(resample)
        path, layout, file = self.path, self.layout, self.file
        model = built(path, self.config, self.layers, build)  # as in the file; it gets values if it is not changed
        model.unused = layout.unused(file.tensors, self.config)
        check_shapes(file, layout.entries(model), model)
        target = model if config == self.config else (build or ViT.without_values)(config)
        target.initialize(None, dtype, backend)
        tensors = file.read()
        target.unused = layout.unused(tensors, config)
        state = imported(path, tensors, layout.entries(model), target.parameters.store.values.dtype)
        target.load_state_dict(adapted(state, self.config, target, resample))
        return target


def open_model_file(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> OpenedFile:
    """Open a model file, whose configuration is completed with `fields`; as `load_model`, but nothing is loaded.

    Raises
    ------
    UserError
        As `load_model`.
    """
    path, fields = model_file(path), plain(dict(fields))
    file = open_weights(path)
    own = own_part(file)
    given = {name: value for name, value in fields.items() if name not in CHANGEABLE}
    if own is None:
        layout, file = recognised(file)
        _expect_fitting(layout, file, given)
        found, layers = layout.fields(file, fields), {}
    else:
        layout = _own_layout(path, own)
        file = file.changed(layout.prepare)
        expect_of_run(path, own["extra"])
        found, layers = {**own["config"], **layout.always}, own.get("layers", {})
        if not layers:
            _expect_fitting(layout, file, given)
    config = usable_config(path, {**found, **given})
    if not layers:
        check_sizes(layout, file, config)
    return OpenedFile(path, layout, file, config, layers)


def model_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the values that `save_model` stored as `extra`, such as ``class_names``, ``mean`` and ``std``.

    For a file of another program, return these three, ``crop_pct``, ``crop_mode`` and ``interpolation``, as far as the
    files or its family define them. The 1,000 classes of timm's files are those of ImageNet-1k, if it does not name
    others. `path` is as in `load_model`.

    Raises
    ------
    UserError
        The file does not exist or cannot be read.
    """
    file = open_weights(model_file(path))
    own = own_part(file)
    if own is not None:
        return dict(own["extra"])
    layout, file = recognised(file)
    return layout.metadata(file)


def program_of(path: str | os.PathLike[str]) -> str:
    """Return the program that wrote a model file, by its layout. `path` and errors are as in `load_model`."""
    file = open_weights(model_file(path))
    return "minivit" if own_part(file) is not None else recognised(file)[0].program


def _own_layout(path: Path, own: Mapping[str, Any]) -> Layout:
    """Return the layout of a file that minivit wrote."""
    if own.get("format") == MaskedLayout.name:
        return MaskedLayout()
    try:
        return layout_named(own.get("format", "timm"))
    except UserError as error:
        raise UserError(f"{path} is damaged, or of a newer minivit: {error}") from error


def _expect_fitting(layout: Layout, file: WeightsFile, given: Mapping[str, Any]) -> None:
    """Raise UserError if a size is given that differs from that of the tensors."""
    for name, found in layout.sizes(file).items():
        asked = given.get(name, found)
        if (image_pair(asked) if name == "patch_size" else asked) != found:
            raise UserError(
                f"{file.path} holds a model with {name} {found}; it cannot be loaded with {asked!r:.40}: of its sizes "
                f"only {' and '.join(CHANGEABLE)} can be changed"
            )


def usable_config(path: Path, values: dict[str, Any]) -> ViTConfig:
    """Return the configuration of these fields, or raise UserError, which names the file `path`."""
    try:
        return ViTConfig.from_dict(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: its configuration cannot be used: {error}") from error
