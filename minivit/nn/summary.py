"""The cost of a model: parameters, floating-point operations and memory, layer by layer, from its configuration alone.

    flops    of one image's forward pass: 2 for each multiply-add of a matrix product, 0 for the rest; all tokens of
             the last block are counted, as in papers, although the model may compute the class token alone
    memory   bytes that the forward pass of training keeps for the backward pass, on NumPy, for each image of a batch

Nothing is allocated, so the summary of a large model takes no longer than that of a small one. The tests compare the
formulas with the parameters and caches of real models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minivit.nn.config import ViTConfig
from minivit.nn.vit import ViT


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer; `parameters` is a count, `flops` and `memory` (bytes) are for one image."""

    name: str
    parameters: int
    flops: int
    memory: int


@dataclass(frozen=True)
class Summary:
    """The cost of a model.

    Attributes
    ----------
    layers
        In the order of the forward pass; a block counts as four: norm1, attn, norm2, mlp, each with the dropout and
        stochastic depth that follow it.
    """

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """The number of trainable parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def flops(self) -> int:
        """Floating-point operations of an image's forward pass; a training step takes three times as many."""
        return sum(layer.flops for layer in self.layers)

    @property
    def memory(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, for each image of a batch."""
        return sum(layer.memory for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as plain values for JSON."""
        totals = {"parameters": self.parameters, "flops": self.flops, "memory": self.memory}
        return totals | {"layers": [asdict(layer) for layer in self.layers]}


def summarize(config: ViTConfig, dtype: Any = "float32") -> Summary:
    """Return the cost of the model of `config`, trained in `dtype`."""
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
