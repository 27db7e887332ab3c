"""Models for masked pre-training in files: written in a layout of our own, and read from Hugging Face transformers too.

`load_model` reads the encoder alone from the same files, as a ViT without a head.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.config_checks import plain
from minivit.nn.describe import architecture
from minivit.nn.masked import MaskedModel
from minivit.nn.pretraining import TASKS
from minivit.nn.vit import ViT
from minivit.weights.adapt import CHANGEABLE, adapted, adapted_config
from minivit.weights.entries import Entry, same
from minivit.weights.formats import recognised, unwrapped
from minivit.weights.layout import WeightsFile, check_shapes, check_sizes, imported
from minivit.weights.load import open_model_file, usable_config
from minivit.weights.masked_layout import ENCODER, MaskedLayout
from minivit.weights.of_run import expect_of_run
from minivit.weights.save import as_json, file_at, savable_state
from minivit.weights.source import KEY, model_file, open_weights, own_part
from minivit.weights.tensors import write_tensors

MASKED = "masked.safetensors"  # in a folder of a run, beside the encoder in model.safetensors
_CLOSE = 2.0**-9 + 1e-5  # of fixed positions: the rounding of bfloat16


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_size(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and all(map(_is_number, value))


# The options of all tasks: which values they may have, in code and in words.
_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ratio": (_is_number, "a number"),
    "target": (lambda value: isinstance(value, str), "a name"),
    "mean": (_are_numbers, "numbers"),
    "std": (_are_numbers, "numbers"),
    "decoder_dim": (_is_size, "a whole number above 0"),
    "decoder_depth": (lambda value: type(value) is int and value >= 0, "a whole number"),
    "decoder_heads": (_is_size, "a whole number above 0"),
    "decoder_mlp": (_is_size, "a whole number above 0"),
    "norm_pixels": (lambda value: type(value) is bool, "true or false"),
    "eps": (lambda value: value is None or (_is_number(value) and value >= 0), "a number"),
}


def save_masked_model(model: MaskedModel, path: str | os.PathLike[str], extra: Mapping[str, Any] | None = None) -> None:
    """Write a model for masked pre-training to one safetensors file, with its configuration inside.

    Parameters
    ----------
    model : MaskedModel
        A `MaskedPatches`, `MAE` or `SimMIM` in float32 or float64; its values are stored exactly, under the names and
        shapes of its ``state_dict()``.
    path : path
        A file ``*.safetensors``, or a folder, in which the file is ``model.safetensors``. Missing folders are created.
    extra : mapping, optional
        Further values to store, which must be valid JSON; `model_metadata` returns them.

    Raises
    ------
    UserError
        The suffix of the file is unknown, `extra` is not valid JSON, or the model has layers of a user's own.
    RunError
        The file cannot be written; an existing file is not changed.
    """
    if not isinstance(model, MaskedModel):
        raise UserError(f"save_masked_model was given a {type(model).__name__}; save_model writes a ViT")
    state = savable_state(model)
    path = file_at(Path(path), ".safetensors", MaskedLayout.name)
    task, config, options = model.task, model.config, model.options
    usual = architecture(TASKS[task](ViT.without_values(config), **options)) if type(model) is TASKS.get(task) else {}
    here = architecture(model)
    if own := [name for name in {**here, **usual} if here.get(name) != usual.get(name)]:
        raise UserError(
            f"a model for masked pre-training with a layer of your own as {own[0] or 'the model'} cannot be "
            "saved; save_model(model.encoder, path) stores its encoder"
        )
    values = {"format": MaskedLayout.name, "task": task, "config": config.to_dict(), "options": options}
    write_tensors(path, state, {"format": "pt", KEY: as_json({**values, "extra": dict(extra or {})})})


def load_masked_model(
    path: str | os.PathLike[str], dtype: Any = "float32", backend: str = "numpy", **fields: Any
) -> MaskedModel:
    """Read a model for masked pre-training, which `save_masked_model` or Hugging Face transformers wrote.

    Of transformers these are ViTMAEForPreTraining, which is an `MAE`, and ViTForMaskedImageModeling, a `SimMIM`;
    ``config.json`` beside the file is followed.

    Parameters
    ----------
    path : path
        A file, or a folder with ``model.safetensors``, as for `load_model`, or a run of `minivit pretrain`, of which
        the best model is read.
    dtype : dtype
        "float32" or "float64", the dtype of the model.
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    **fields
        Fields of `ViTConfig` for the encoder, as in `load_model`, and options of the task, such as ``ratio=0.5``, which
        replace those in the file, or supply what it does not define, such as ``decoder_heads``.

    Returns
    -------
    MaskedModel
        A `MaskedPatches`, `MAE` or `SimMIM`, as its `task` says.

    Raises
    ------
    UserError
        The file is missing, damaged or of another kind, it holds no model for masked pre-training, or the tensors do
        not fit its configuration, its options or `fields`. A decoder with other positions than minivit's is refused.

    Warns
    -----
    UserWarning
        The files do not define a field or option, and that of the family is assumed; the message names it.
    """
    path = Path(path)
    in_run = [folder / MASKED for folder in (path, path / "best") if (folder / MASKED).is_file()]
    path = model_file(in_run[0] if in_run else path)
    fields = plain(fields)
    given = {name: _as_tuple(value) for name, value in fields.items() if name in _OPTIONS}
    fields = {name: value for name, value in fields.items() if name not in _OPTIONS}
    file = open_weights(path)
    own = own_part(file)
    opened = _of_transformers(file, fields, given) if own is None else _own(file, own, fields)
    options = {**opened.options, **given}
    _expect_options(path, options, len(file.tensors))
    try:
        config = adapted_config(opened.config, fields)
        model = TASKS[opened.task](ViT.without_values(opened.config), **options)
        target = TASKS[opened.task](ViT.without_values(config), **options) if config != opened.config else model
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{path} cannot be loaded as a model of the task {opened.task!r}: {error}") from error
    entries, file = opened.entries(model), opened.file
    parameters = {name: value for name, value in file.tensors.items() if name not in opened.fixed}
    check_shapes(WeightsFile(path, parameters, {}, {}, file.read), entries, model)
    target.initialize(None, dtype, backend)
    tensors = file.read()
    _expect_fixed(path, tensors, opened.fixed)
    tensors = {name: value for name, value in tensors.items() if name not in opened.fixed}
    state = imported(path, tensors, entries, target.parameters.store.values.dtype)
    encoder = {name.removeprefix(ENCODER): state.pop(name) for name in list(state) if name.startswith(ENCODER)}
    encoder = adapted(encoder, opened.config, target.encoder)
    target.load_state_dict(state | {ENCODER + name: value for name, value in encoder.items()})
    return target


class _Opened(NamedTuple):
    """A file whose headers were read, its model, and tensors that are not parameters, with the values expected."""

    file: WeightsFile
    task: str
    config: ViTConfig
    options: dict[str, Any]
    entries: Callable[[MaskedModel], list[Entry]]
    fixed: dict[str, Array]


def _own(file: WeightsFile, own: Mapping[str, Any], fields: Mapping[str, Any]) -> _Opened:
    """Return what a file of minivit holds."""
    if own.get("format") != MaskedLayout.name:
        raise _no_masked_model(file)
    task, options = own.get("task"), own.get("options")
    if not isinstance(task, str) or task not in TASKS or not isinstance(options, dict):
        raise UserError(
            f"{file.path} is damaged, or of a newer minivit: its task is {task!r:.40}, and its options {options!r:.40}"
        )
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise UserError(f"{file.path} is damaged, or of a newer minivit: unknown option {unknown[0]!r:.40}")
    expect_of_run(file.path, own["extra"])
    given = {name: value for name, value in fields.items() if name not in CHANGEABLE}
    config = usable_config(file.path, {**own["config"], **given})
    layout = MaskedLayout()
    check_sizes(layout, file.changed(layout.prepare), config)
    options = {name: _as_tuple(value) for name, value in options.items()}
    return _Opened(file, task, config, options, lambda model: [same(name) for name in model.declared()], {})


def _of_transformers(file: WeightsFile, fields: Mapping[str, Any], given: Mapping[str, Any]) -> _Opened:
    """Return what a file of transformers holds."""
    from minivit.weights import huggingface_masked  # not for every `import minivit`

    layout, encoder = recognised(file)
    layout.sizes(encoder)  # says what is wrong with a file that holds no Vision Transformer
    file = unwrapped(file)[1].changed(huggingface_masked.whole)
    task = huggingface_masked.task_of(file)
    if layout.name != "huggingface" or task is None:
        raise _no_masked_model(file)
    config = open_model_file(file.path, fields).config
    options = huggingface_masked.options_of(file, task, config, given)
    fixed = huggingface_masked.fixed(file, task, config, options)
    return _Opened(file, task, config, options, huggingface_masked.entries, fixed)


def _no_masked_model(file: WeightsFile) -> UserError:
    has_token = any(name.endswith("mask_token") for name in file.tensors)
    what = "a mask token but no decoder" if has_token else "no mask token"
    return UserError(
        f"{file.path} holds no model for masked pre-training: it has {what}; load_model reads it as a plain ViT"
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _expect_options(path: Path, options: Mapping[str, Any], tensors: int) -> None:
    """Raise UserError if an option has a value of another kind, or there are more blocks than tensors."""
    for name, value in options.items():
        allowed, words = _OPTIONS[name]
        if not allowed(value):
            raise UserError(f"{path} cannot be loaded: its {name} is {value!r:.40}; expected {words}")
    if options.get("decoder_depth", 0) > tensors:
        raise UserError(f"{path} has {tensors} tensors, too few for a decoder of {options['decoder_depth']} blocks")


def _expect_fixed(path: Path, tensors: Mapping[str, Array], fixed: Mapping[str, Array]) -> None:
    """Raise UserError if a tensor has other values than those that are computed here."""
    for name, expected in fixed.items():
        if not (abs(tensors[name] - expected) <= _CLOSE).all():
            raise UserError(
                f"{path}: {name} holds other positions than the sines and cosines of He et al. 2021 for these patches, "
                "which are the only ones that minivit's decoder has"
            )
