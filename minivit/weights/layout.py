"""The layouts of model files: how tensors of other programs become parameters of a `ViT`, and back.

A layout declares one `Entry` for each parameter. The code here applies them: every tensor is used once, or the error
lists what is missing, left over or of another shape.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError, counted
from minivit.nn.config import ViTConfig
from minivit.nn.layer import Layer
from minivit.nn.vit import ViT
from minivit.weights.entries import Entry, Tensors, hollow

# Fields that concern training alone: every layout keeps the model without them.
TRAINING_FIELDS = {"init", "zero_head", "drop_path_rate", "patch_drop_rate"}
TRAINING_FIELDS |= {"drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"}


@dataclass(frozen=True)
class WeightsFile:
    """A model file whose tensors have not been read.

    Parameters
    ----------
    path : Path
        The file, for messages.
    tensors : dict
        `hollow` arrays of the shapes in the file.
    about : dict
        The metadata in the file, strings by name.
    config_json : dict
        The content of ``config.json`` in the same folder, or empty.
    read : callable
        Reads all tensors: NumPy arrays by name.
    """

    path: Path
    tensors: dict[str, Array]
    about: Mapping[str, str]
    config_json: Mapping[str, Any]
    read: Callable[[], dict[str, Array]]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors, by name."""
        return {name: value.shape for name, value in self.tensors.items()}

    def changed(self, change: Callable[[dict[str, Array]], dict[str, Array]]) -> WeightsFile:
        """Return the file with its tensors renamed or cut by `change`, which also acts on them when they are read."""
        return WeightsFile(self.path, change(self.tensors), self.about, self.config_json, lambda: change(self.read()))


class Layout(ABC):
    """The names and shapes of tensors in the model files of one program."""

    name: ClassVar[str]  # of the argument `format`
    program: ClassVar[str]  # whose layout it is, for messages
    suffix: ClassVar[str] = ".safetensors"
    # Fields of ViTConfig that the layout can express, with the values that they may have (None: any). All other fields
    # must have their defaults.
    expresses: ClassVar[Mapping[str, Collection[Any] | None]] = {}
    # Fields that its files do not define, with the values with which the program computes.
    family: ClassVar[Mapping[str, Any]] = {}
    # Fields of every model that is read from them, whatever the configuration in the file says.
    always: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def recognises(self, names: Collection[str]) -> bool:
        """Return whether tensors of these names are of this layout."""

    def prepare(self, tensors: dict[str, Array]) -> dict[str, Array]:
        """Return the tensors under the names that `entries` uses; they may be `hollow`."""
        return tensors

    @abstractmethod
    def sizes(self, file: WeightsFile) -> dict[str, Any]:
        """Return the attributes of the configuration that the shapes determine.

        Raises
        ------
        UserError
            A tensor that determines a size is missing or has the wrong number of axes, or the message names a part of
            the file's model that minivit does not have.
        """

    @abstractmethod
    def fields(self, file: WeightsFile, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of `ViTConfig` for the file.

        The sources, in order of precedence, are the shapes, `given` (the arguments of `load_model`), the file's
        configuration, and what is known of the family; a warning says what was assumed.

        Raises
        ------
        UserError
            A field is not determined, and must be given.
        """

    @abstractmethod
    def entries(self, model: ViT) -> list[Entry]:
        """Return an entry for each parameter of `model`, which may have no values.

        A parameter that the layout cannot store has no entry: `check_shapes` refuses it.
        """

    def unused(self, tensors: Tensors, config: ViTConfig) -> dict[str, Array]:
        """Return what the model does not use of the file's tensors, for ``model.unused``; they may be `hollow`."""
        return {}

    def metadata(self, file: WeightsFile) -> dict[str, Any]:
        """Return class_names and preprocessing, as `save_model` takes them as `extra`."""
        return {}

    def side_files(self, config: ViTConfig, extra: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the JSON files that belong into the same folder, by name."""
        return {}

    def caveat(self, config: ViTConfig) -> str:
        """Return where the program would compute otherwise with a model that the layout can express, or ""."""
        values = {name: getattr(config, name) for name in self.family}
        differs = [f"{name}={value!r}" for name, value in values.items() if value != self.family[name]]
        usual = ", ".join(f"{name}={value!r}" for name, value in self.family.items())
        return f"models of {self.program} have {usual}, and this one has {', '.join(differs)}" if differs else ""

    def refusals(self, config: ViTConfig) -> list[str]:
        """Return, as "name=value", what the layout cannot express."""
        found = []
        for field in fields(config):
            value = getattr(config, field.name)
            allowed = self.expresses.get(field.name, (field.default,) if field.default is not MISSING else None)
            if field.name not in TRAINING_FIELDS and allowed is not None and value not in allowed:
                found.append(f"{field.name}={value!r}")
        return found


def check_sizes(layout: Layout, file: WeightsFile, config: ViTConfig) -> None:
    """Raise UserError if the shapes and `config` differ in a size, before a model is created."""
    for name, found in layout.sizes(file).items():
        expected = getattr(config, name)
        if found != expected:
            raise UserError(
                f"{file.path} belongs to another model: its tensors have {name} {found}, but its configuration "
                f"{expected}"
            )


def check_shapes(file: WeightsFile, entries: Sequence[Entry], model: Layer) -> None:
    """Raise UserError if a parameter has no entry, a tensor is missing or of another shape, or there is another one."""
    declared, shapes = model.declared(), file.shapes
    named = {entry.name for entry in entries}
    if lacking := [name for name in declared if name not in named]:
        raise UserError(
            f"{file.path}: its layout has no {counted(lacking, 'parameter')}, which these fields of the model require"
        )
    expected: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        ours = declared[entry.name].shape
        if math.prod(ours) >= 1 << 48:
            raise UserError(f"{file.path}: its configuration requires {entry.name} of shape {ours}, which is too large")
        try:
            theirs = entry.split(hollow(ours))
        except ValueError as error:
            raise UserError(
                f"{file.path}: its layout has no {entry.name} of shape {ours}, which these fields of the model require"
            ) from error
        expected |= {name: value.shape for name, value in zip(entry.theirs, theirs, strict=True)}
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    if missing or unknown:
        wrong = ("missing", missing), ("unknown", unknown)
        raise UserError(
            f"{file.path} is not a Vision Transformer that minivit supports: "
            + " and ".join(counted(names, f"tensor {what}", f"tensors {what}") for what, names in wrong if names)
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UserError(f"{file.path}: {name} has shape {shapes[name]}; its configuration requires {shape}")


def imported(path: Path, tensors: Tensors, entries: Sequence[Entry], dtype: Any) -> dict[str, Array]:
    """Return the parameters in tensors that passed `check_shapes`, by our names.

    Raises
    ------
    UserError
        A tensor does not hold floating-point numbers, or a value is not finite or too large for `dtype`.
    """
    largest = np.finfo(dtype).max
    for name, value in tensors.items():
        if value.dtype.kind != "f":
            raise UserError(f"{path}: {name} is {value.dtype}; expected floating-point numbers")
        if not np.isfinite(value).all():
            raise UserError(f"{path}: {name} holds NaN or infinity; these weights cannot be used")
        if abs(value).max(initial=0.0) > largest:
            raise UserError(f"{path}: {name} holds numbers too large for {np.dtype(dtype)}; use dtype='float64'")
    return {entry.name: entry.join([tensors[name] for name in entry.theirs]) for entry in entries}
