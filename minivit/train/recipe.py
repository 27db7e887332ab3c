"""A recipe: everything that determines the result of a training run, except for the images."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any

from minivit.data.dataset import Dataset
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config
from minivit.nn.vit import ViT
from minivit.train.optimizers import SGD, Adam, AdamW, Optimizer
from minivit.train.schedules import SCHEDULES

OPTIMIZERS = ("adamw", "adam", "sgd")


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. Two runs of one recipe on one machine end in the same bits.

    Parameters
    ----------
    dataset : str
        "digits", "cifar10", "cifar100" or a path.
    model : str
        A preset; its classes, channels and image size are replaced by those of the data set.
    model_options : dict
        Other fields of `ViTConfig` that differ from the preset's.
    epochs, batch_size : int
        Passes over the training images; images in a step.
    optimizer : str
        "adamw", "adam" or "sgd".
    lr, weight_decay : float
        Largest learning rate; weight decay of matrices.
    betas : tuple of float
        The decay rates of the moving averages of Adam and AdamW.
    momentum : float
        The momentum of SGD.
    warmup_epochs : float
        Epochs over which the learning rate rises from zero.
    schedule : str
        "cosine", "linear" or "constant", after the warmup.
    clip_norm : float
        Largest global norm of the gradients; 0 for no clipping.
    label_smoothing : float
        See `ops.cross_entropy`.
    crop_padding : int
        Largest shift of an image, in pixels; 0 for none.
    flip : bool
        Whether half of the images are mirrored.
    validation : float
        Share of the training images that are held out to choose the best epoch.
    micro_batch : int
        Images that a worker takes at a time; 0 for the model's own number. It is part of the recipe because the bits
        depend on it. It has no effect on a device.
    reduction_groups : int
        Number of groups in which the gradients of micro-batches are added; 0 for the model's own number. The bits
        depend on it too. It has no effect on a device.
    dtype : str
        "float32" or "float64".
    seed : int
        The seed of the initial parameters, the validation split, the order of the images, augmentation and dropout.
    """

    dataset: str
    model: str
    model_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 10
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    warmup_epochs: float = 1.0
    schedule: str = "cosine"
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    validation: float = 0.1
    micro_batch: int = 0
    reduction_groups: int = 0
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name in ("epochs", "batch_size", "crop_padding", "micro_batch", "reduction_groups", "seed"):
            _expect(name, getattr(self, name), type(getattr(self, name)) is int, "a whole number")
        _expect("flip", self.flip, isinstance(self.flip, bool), "true or false")
        for name in ("epochs", "batch_size"):
            _expect(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        floats = ("lr", "weight_decay", "warmup_epochs", "clip_norm")
        for name in (*floats, "crop_padding", "micro_batch", "reduction_groups", "seed"):
            _expect(name, getattr(self, name), 0 <= getattr(self, name) < float("inf"), "0 or more")
        for name in ("validation", "label_smoothing", "momentum"):
            _expect(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _expect("optimizer", self.optimizer, self.optimizer in OPTIMIZERS, f"one of {', '.join(OPTIMIZERS)}")
        _expect("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        _expect("dtype", self.dtype, self.dtype in ("float32", "float64"), "float32 or float64")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for a file."""
        return {**asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` wrote.

        Raises
        ------
        UserError
            A field is unknown, missing or out of range.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise UserError(f"unknown fields of a recipe: {', '.join(sorted(unknown))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"not a recipe: {error}") from error

    def resolved(self, config: ViTConfig) -> Recipe:
        """Return the recipe with the model's own `micro_batch` and `reduction_groups` in place of zeros."""
        return replace(
            self,
            micro_batch=self.micro_batch or config.micro_batch,
            reduction_groups=self.reduction_groups or config.reduction_groups,
        )

    def differences(self, options: dict[str, Any]) -> list[str]:
        """Return a line for each of `options` that differs from this recipe."""
        return [
            f"{name} is {getattr(self, name)!r} in the run, {value!r} was asked for"
            for name, value in options.items()
            if getattr(self, name) != value
        ]


def _expect(name: str, value: Any, fits: bool, expected: str) -> None:
    if not fits:
        raise UserError(f"{name} is {value!r}; expected {expected}")


def load_recipe(dataset: str, **options: Any) -> Recipe:
    """Return minivit's own recipe for `dataset`, "folder" for a path, with `options` replaced."""
    folder = resources.files("minivit.train") / "recipes"
    name = dataset if (folder / f"{dataset}.toml").is_file() else "folder"
    values = tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))
    return replace(Recipe.from_dict({**values, "dataset": dataset}), **options)


def model_config(recipe: Recipe, dataset: Dataset) -> ViTConfig:
    """Return the recipe's model with the data set's image size, channels and classes.

    Raises
    ------
    UserError
        There is no such model, or the images do not fit the model or the augmentation of the recipe.
    """
    _, height, width, channels = dataset.train_images.shape
    fitting = {"img_size": (height, width), "in_chans": channels, "num_classes": len(dataset.class_names)}
    config = get_config(recipe.model, **{**fitting, **recipe.model_options})
    for name, value in fitting.items():
        if getattr(config, name) != value:
            asked = getattr(config, name)
            raise UserError(f"{name} {asked} was asked for, but {dataset.name} has {value}; leave it out")
    if recipe.crop_padding >= min(height, width):
        raise UserError(f"crop_padding {recipe.crop_padding} could shift images of {height} x {width} away")
    return config


def make_optimizer(recipe: Recipe, model: ViT) -> Optimizer:
    """Return the recipe's optimiser for `model`."""
    if recipe.optimizer == "sgd":
        return SGD(model, recipe.lr, recipe.momentum, recipe.weight_decay)
    kind = AdamW if recipe.optimizer == "adamw" else Adam
    return kind(model, recipe.lr, recipe.betas, weight_decay=recipe.weight_decay)
