"""What a run begins with: the model and the optimiser that its recipe asks for."""

from __future__ import annotations

from minivit.data.dataset import Dataset
from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.presets import get_config
from minivit.nn.vit import ViT
from minivit.train.optimizers import SGD, Adam, AdamW, Optimizer
from minivit.train.recipe import Recipe


def model_config(recipe: Recipe, dataset: Dataset) -> ViTConfig:
    """Return the recipe's model with the data set's image size, channels and classes.

    Raises
    ------
    UserError
        There is no such model, or the recipe asks for one that the images do not fit.
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
