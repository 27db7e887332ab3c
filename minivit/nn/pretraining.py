"""The tasks of pre-training without labels by their names, and a model for each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.corrupted import SimMIM
from minivit.nn.mae import MAE
from minivit.nn.masked import MaskedModel
from minivit.nn.masked_patches import MaskedPatches
from minivit.nn.presets import get_config
from minivit.nn.vit import ViT

TASKS: dict[str, type[MaskedModel]] = {kind.task: kind for kind in (MaskedPatches, MAE, SimMIM)}


def masked_model(
    task: str,
    config: ViTConfig | str,
    seed: Any = 0,
    dtype: Any = "float32",
    backend: str = "numpy",
    **options: Any,
) -> MaskedModel:
    """Return a model for pre-training, with initial parameters.

    Parameters
    ----------
    task : str
        "mpp" for `MaskedPatches`, "mae" for `MAE`, "simmim" for `SimMIM`.
    config : ViTConfig or str
        The configuration of the encoder, or the name of one. Its classes are left out: the encoder has no head. Its
        final norm is that of the tokens, unless `fc_norm` is given.
    seed, dtype, backend
        As for `ViT`; None as the seed leaves the parameters at zero, to be loaded.
    **options
        The arguments of the model beside the encoder, such as ``ratio=0.75``.

    Raises
    ------
    UserError
        There is no such task, or the options or the encoder do not fit it.
    """
    if task not in TASKS:
        raise UserError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    known = options_of(task)
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"{unknown[0]} is not an option of the task {task}, which has {', '.join(known)}")
    config = get_config(config) if isinstance(config, str) else config
    if config.norms_pooled and config.fc_norm is None:
        config = replace(config, fc_norm=False)
    encoder = ViT.without_values(replace(config, num_classes=0, representation_size=0))
    try:
        model = TASKS[task](encoder, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"the task {task} cannot be used like this: {error}") from error
    return model.initialize(seed, dtype, backend)


def with_defaults(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the model of a task, with the default of each that is left out."""
    parameters = inspect.signature(TASKS[task]).parameters
    return {name: parameters[name].default for name in options_of(task)} | dict(options)


def options_of(task: str) -> list[str]:
    """Return the names of the arguments of the model of a task beside the encoder."""
    return [name for name in inspect.signature(TASKS[task]).parameters if name != "encoder"]
