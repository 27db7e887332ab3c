"""The Vision Transformer (Dosovitskiy et al. 2020): its wiring."""

from __future__ import annotations

from typing import Any, Self

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.config import ACTIVATIONS, ViTConfig
from minivit.nn.dropout import Dropout
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.initializers import SCHEMES
from minivit.nn.layer import Cost, Layer, total_cost
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.parameters import Parameter
from minivit.nn.patch_embed import PatchEmbed
from minivit.ops.attention import ALL
from minivit.ops.registry import runs_references_only
from minivit.random import Key, fold


class ViT(Layer):
    """A Vision Transformer: (B, height, width, C) images to (B, num_classes) logits.

    Parameters
    ----------
    config : ViTConfig
        The configuration of the model.
    seed : int or None
        The seed of the initial parameters; None leaves them at zero, to be loaded.
    dtype : dtype
        The dtype of parameters, images and logits: "float32" or "float64" ("complex128" for the complex step).
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    """

    def __init__(self, config: ViTConfig, seed: int | None = 0, dtype: Any = "float32", backend: str = "numpy") -> None:
        self._build(config)
        self.initialize(seed, dtype, backend)

    @classmethod
    def without_values(cls, config: ViTConfig) -> Self:
        """Return the layers of a model whose parameters have shapes and no values: nothing is allocated."""
        model = cls.__new__(cls)
        model._build(config)
        return model

    def _build(self, config: ViTConfig) -> None:
        scheme = SCHEMES[config.init]
        D = config.embed_dim
        self.config = config
        self.patch_embed = PatchEmbed((config.patch_height, config.patch_width), config.in_chans, D, config.init)
        self.cls_token = Parameter((1, 1, D), scheme.cls_token) if config.class_token else None
        self.pos_embed = Parameter((1, config.num_tokens, D), scheme.pos_embed)
        self.pos_drop = Dropout(config.pos_drop_rate)
        self.blocks = [
            EncoderBlock(
                D,
                config.num_heads,
                config.hidden_dim,
                eps=config.norm_eps,
                approximate=ACTIVATIONS[config.act_layer],
                attn_drop_rate=config.attn_drop_rate,
                proj_drop_rate=config.proj_drop_rate,
                drop_path_rate=config.drop_path_rate * i / max(1, config.depth - 1),
                init=config.init,
            )
            for i in range(config.depth)
        ]
        if config.global_pool == "token":
            self.norm = LayerNorm(D, config.norm_eps)
        else:
            self.fc_norm = LayerNorm(D, config.norm_eps)
        self.head_drop = Dropout(config.drop_rate)
        self.head = Linear(D, config.num_classes, scheme.head_weight, scheme.bias)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return logits (B, num_classes) for images `x` (B, height, width, C), and the cache for `backward`.

        Raises
        ------
        ValueError, TypeError
            The images' shape or dtype is not the model's.
        """
        self.check_images(x)
        cls_token = None if self.cls_token is None else self.cls_token.value
        x, cache1 = self.patch_embed.forward(x, keep=keep)
        x, cache2 = ops.embed(x, self.pos_embed.value, cls_token, keep=keep)
        x, cache3 = self.pos_drop.forward(x, fold(rng, "pos_drop"), keep)
        block_caches = []
        for i, block in enumerate(self.blocks):
            x, cache = block.forward(x, fold(rng, f"blocks.{i}"), keep, self.queries(i))
            block_caches.append(cache)
        x, cache4 = ops.pool(x, self.config.global_pool, int(self.config.class_token), keep=keep)
        x, cache5 = self.final_norm().forward(x, keep=keep)
        x, cache6 = self.head_drop.forward(x, fold(rng, "head_drop"), keep)
        logits, cache7 = self.head.forward(x, keep=keep)
        return logits, (cache1, cache2, cache3, block_caches, cache4, cache5, cache6, cache7) if keep else None

    def backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Add to all gradients for the gradient `dy` (B, num_classes) of the logits; return that of the images.

        With ``release=True`` the cache is used up: the part of each block is freed when it has been read.
        """
        cache1, cache2, cache3, block_caches, cache4, cache5, cache6, cache7 = self.kept(cache)
        if not release:
            block_caches = list(block_caches)
        dx = self.head.backward(dy, cache7)
        dx = self.head_drop.backward(dx, cache6)
        dx = self.final_norm().backward(dx, cache5)
        dx = ops.pool_backward(dx, cache4)
        for block in reversed(self.blocks):
            dx = block.backward(dx, block_caches.pop())
        dx = self.pos_drop.backward(dx, cache3)
        dx, dpos_embed, dcls_token = ops.embed_backward(dx, cache2)
        self.pos_embed.add_grad(dpos_embed)
        if self.cls_token is not None and dcls_token is not None:
            self.cls_token.add_grad(dcls_token)
        return self.patch_embed.backward(dx, cache1)

    def queries(self, i: int) -> slice:
        """Return the tokens whose result block `i` computes.

        These are all tokens, except in the last block before a class-token head, which reads only the class token.
        Under `ops.reference_only`, every block computes all tokens.
        """
        last = i == self.config.depth - 1 and not runs_references_only()
        return slice(0, 1) if last and self.config.global_pool == "token" else ALL

    def is_standard(self) -> bool:
        """Return whether every block consists of its original layers, so that workers may share its tokens."""
        return type(self) is ViT and all(isinstance(b, EncoderBlock) and b.is_standard() for b in self.blocks)

    def costs(self) -> dict[str, Cost]:
        """Return the cost of each part for one image, in the order of the forward pass; a block has four parts."""
        config = self.config
        tokens = config.num_tokens, config.embed_dim
        costs = {"patch_embed": self.patch_embed.cost((config.height, config.width, config.in_chans))}
        costs["tokens"] = self.pos_drop.cost(tokens)
        for i, block in enumerate(self.blocks):
            costs |= {f"blocks.{i}.{name}": cost for name, cost in block.costs(tokens, self.queries(i)).items()}
        pooled = (config.embed_dim,)
        costs["norm" if config.global_pool == "token" else "fc_norm"] = self.final_norm().cost(pooled)
        costs["head"] = total_cost([self.head_drop.cost(pooled), self.head.cost(pooled)])
        return costs

    def final_norm(self) -> LayerNorm:
        """Return the norm before the head."""
        # Each token is normalised independently, so the norm is applied after pooling, to one vector per image.
        return self.norm if self.config.global_pool == "token" else self.fc_norm

    def check_images(self, x: Array) -> None:
        """Raise ValueError or TypeError unless `x` are images that the model takes."""
        namespace(x, self.pos_embed.value)
        config = self.config
        expected = (config.height, config.width, config.in_chans)
        if x.ndim != 4 or x.shape[1:] != expected or x.shape[0] == 0:
            raise ValueError(
                f"images have shape {x.shape}; this model takes (B, {', '.join(map(str, expected))}): "
                "batch, height, width, channels, and at least one image"
            )
        if x.dtype != self.pos_embed.value.dtype:
            raise TypeError(
                f"images have dtype {x.dtype}; this model computes in {self.pos_embed.value.dtype}: convert with astype"
            )
