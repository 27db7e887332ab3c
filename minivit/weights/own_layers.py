"""Models with layers of a user's own: a model file names them, and `load_model` needs a function that makes them.

The file holds, by name, the layers that differ from those of ``ViT(config)``: their class and what they compute with.
So a model is never loaded with other layers than it was saved with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from minivit.errors import UserError
from minivit.nn.config import ViTConfig
from minivit.nn.describe import architecture
from minivit.nn.vit import ViT

Build: TypeAlias = Callable[[ViTConfig], ViT]


def own_layers(model: ViT, config: ViTConfig) -> dict[str, str]:
    """Return the layers of `model` that differ from those of `config`, by name; "" for one that is missing."""
    here, usual = architecture(model), architecture(ViT.without_values(config))
    return {name: here.get(name, "") for name in {**here, **usual} if here.get(name) != usual.get(name)}


def built(path: Path, config: ViTConfig, layers: Any, build: Build | None) -> ViT:
    """Return the model without its values for a file with the own `layers`.

    Raises
    ------
    UserError
        `build` is missing, or returned other layers than the file has.
    """
    if not (isinstance(layers, Mapping) and all(isinstance(text, str) for text in layers.values())):
        raise UserError(f"{path}: the list of layers inside it has the wrong structure; the file is damaged")
    if build is None:
        if layers:
            name, text = next(iter(layers.items()))
            raise UserError(
                f"{path} has layers of its own, such as {_named(name, text)}: pass load_model(..., build=f), where "
                "f(config) returns the model with these layers, or a subclass of ViT"
            )
        return ViT.without_values(config)
    model = build(config)
    if not isinstance(model, ViT):
        raise UserError(f"build returned a {type(model).__name__}; expected a minivit.ViT")
    found = own_layers(model, config)
    for name in {**layers, **found}:
        if layers.get(name) != found.get(name):
            usual = architecture(ViT.without_values(config)).get(name, "")
            here, there = found.get(name, usual), layers.get(name, usual)
            raise UserError(f"{path} has {_named(name, there)}, but build returned {_named(name, here)}")
    return model


def _named(name: str, text: str) -> str:
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{text or 'no layer'} as {name or 'the model'}"
