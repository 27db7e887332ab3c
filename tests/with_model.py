"""A model with a layer that is called "model", as the outermost layer is called in a trace otherwise."""

from __future__ import annotations

from typing import Any

from minivit import ViT, ViTConfig
from minivit.arrays import Array
from minivit.layers import Linear


class WithModel(ViT):
    """A ViT whose logits are mapped once more by its layer `model`."""

    def __init__(self, config: ViTConfig, dtype: str = "float32") -> None:
        self.model = Linear(config.num_classes, config.num_classes)
        super().__init__(config, seed=3, dtype=dtype)

    def forward(self, x: Array, rng: Any = None, keep: bool = True) -> tuple[Array, Any]:
        logits, cache = super().forward(x, rng, keep)
        y, own = self.model.forward(logits, rng, keep)
        return y, (cache, own)

    def backward(self, dy: Array, cache: Any) -> Array:  # type: ignore[override] # without the options of a ViT
        return super().backward(self.model.backward(dy, cache[1]), cache[0])
