"""What a model costs: parameters, floating-point operations and memory, layer by layer, from its configuration alone.

    flops    of one image's forward pass: 2 for each multiply-add of a matrix product, nothing for the rest; as papers
             count them, all tokens in the last block too, where the model computes the class token alone
    memory   bytes that the forward pass of training keeps for the backward pass, on NumPy, for each image of a batch

Nothing is allocated, so the largest model is as quick as the smallest. The tests hold the formulas against parameters
and caches of real models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs; `parameters` is a count, `flops` and `memory` (bytes) are for one image."""

    name: str
    parameters: int
    flops: int
    memory: int


@dataclass(frozen=True)
class Summary:
    """What a model costs.

    Attributes
    ----------
    layers
        In the order of the forward pass; a block counts as four: norm1, attn, norm2, mlp, each with the dropout and
        stochastic depth that follow it.
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of an image's forward pass; a step of training takes three times as many."""
        return sum(layer.flops for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, for each image of a batch."""
        return sum(layer.memory for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        totals = {"parameters": self.parameters, "flops": self.flops, "memory": self.memory}
        return totals | {"layers": [asdict(layer) for layer in self.layers]}


def summarize(config: ViTConfig, dtype: Any = "float32") -> Summary:
    """Return what the model of `config` costs, trained in `dtype`."""
    itemsize = np.dtype(dtype).itemsize
    model = ViT.without_values(config)
    counts: dict[str, int] = {}
    for name, parameter in model.declared().items():
        part = _part_of(name)
        counts[part] = counts.get(part, 0) + parameter.size
    costs = model.costs().items()
    return Summary(tuple(LayerCost(name, counts[name], cost.flops, itemsize * cost.kept) for name, cost in costs))


def _part_of(name: str) -> str:
    """Return the part of the model that the parameter `name` belongs to."""
    words = name.split(".")
    if words[0] == "blocks":
        return ".".join(words[:3])
    return "tokens" if len(words) == 1 else words[0]
