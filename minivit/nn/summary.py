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
from minivit.nn.cost import Cost, total_cost
from minivit.nn.layer_norm import LayerNorm
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
    return Summary(
        tuple(
            LayerCost(name, counts.get(name, 0), cost.flops, itemsize * cost.kept)
            for name, cost in part_costs(model).items()
        )
    )


def part_costs(model: ViT) -> dict[str, Cost]:
    """Return the cost of each part for one image, in the order of the forward pass; a block has four parts.

    The operations are those of all tokens. What is kept is that of training, without the patches that are dropped.
    """
    rate, N = model.config.patch_drop_rate, model.config.num_tokens
    costs = _costs(model, N)
    if rate:
        kept = _costs(model, model.patch_drop.num_kept(N))
        costs = {name: Cost(cost.flops, kept[name].kept) for name, cost in costs.items()}
    return costs


def _costs(model: ViT, num_tokens: int) -> dict[str, Cost]:
    """Return the cost of each part with this number of tokens in the blocks."""
    config = model.config
    D = config.embed_dim
    tokens = num_tokens, D
    costs = {"patch_embed": model.patch_embed.cost((config.height, config.width, config.in_chans))}
    whole = config.num_tokens, D
    costs["tokens"] = total_cost([model.pos_drop.cost(whole), model.patch_drop.cost(whole)])
    if isinstance(model.norm_pre, LayerNorm):
        costs["norm_pre"] = model.norm_pre.cost(tokens)
    for i, block in enumerate(model.blocks):
        costs |= {f"blocks.{i}.{name}": cost for name, cost in block.costs(tokens, model.queries(i)).items()}
    if isinstance(model.norm, LayerNorm):
        costs["norm"] = model.norm.cost((D,) if config.global_pool == "token" else tokens)
    if model.attn_pool is not None:
        costs["attn_pool"] = model.attn_pool.cost((tokens[0] - config.first_pooled, D))
    if isinstance(model.fc_norm, LayerNorm):
        costs["fc_norm"] = model.fc_norm.cost((D,))
    if config.representation_size:
        costs["pre_logits"] = model.pre_logits.cost((D,))
    costs["head"] = total_cost([model.head_drop.cost((D,)), model.head.cost((config.representation_size or D,))])
    return costs


def _part_of(name: str) -> str:
    """Return the part of the model that the parameter `name` belongs to."""
    words = name.split(".")
    if words[0] == "blocks":
        branch = {"ls1": "attn", "ls2": "mlp"}  # the factors of a branch count with it
        return ".".join([*words[:2], branch.get(words[2], words[2])])
    return "tokens" if len(words) == 1 or words[0] in ("pos_embed", "pos_embeds") else words[0]
