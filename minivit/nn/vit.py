"""The Vision Transformer (Dosovitskiy et al. 2020): its wiring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.config import ACTIVATIONS, ViTConfig
from minivit.nn.dropout import Dropout
from minivit.nn.encoder_block import EncoderBlock
from minivit.nn.initializers import SCHEMES
from minivit.nn.layer import Layer, untouched
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.nn.parameters import Parameter
from minivit.nn.patch_embed import PatchEmbed
from minivit.ops.attention import ALL
from minivit.random import Key, fold


class ViT(Layer):
    """A Vision Transformer: (B, height, width, C) images to (B, num_classes) logits.

    Parameters
    ----------
    config : ViTConfig
        Its sizes.
    seed : int or None
        Of the first values of its parameters; None leaves them at zero, to be loaded.
    dtype : dtype
        "float32" or "float64" ("complex128" for the complex step): of parameters, images and logits.
    backend : str
        "numpy", "cupy" or, for device 1, "cupy:1", which becomes the current device of this thread.
    """

    def __init__(self, config: ViTConfig, seed: int | None = 0, dtype: Any = "float32", backend: str = "numpy") -> None:
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
        self.initialize(seed, dtype, backend)

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True) -> tuple[Array, Any]:
        """Return logits (B, num_classes) for images `x` (B, height, width, C), and the cache for `backward`.

        Raises
        ------
        ValueError, TypeError
            The images' shape or dtype is not the model's.
        """
        self.check_images(x)
        config = self.config
        cls_token = None if self.cls_token is None else self.cls_token.value
        caches: list[Any] = []

        def through(step: Callable[..., tuple[Array, Any]], *args: Any, **options: Any) -> Array:
            y, cache = step(*args, keep=keep, **options)
            caches.append(cache)
            return y

        x = through(self.patch_embed.forward, x)
        x = through(ops.embed, x, self.pos_embed.value, cls_token)
        x = through(self.pos_drop.forward, x, fold(rng, "pos_drop"))
        for i, block in enumerate(self.blocks):
            x = through(block.forward, x, fold(rng, f"blocks.{i}"), queries=self.queries(i))
        x = through(ops.pool, x, config.global_pool, int(config.class_token))
        x = through(self.final_norm().forward, x)
        x = through(self.head_drop.forward, x, fold(rng, "head_drop"))
        logits = through(self.head.forward, x)
        return logits, caches if keep else None

    def backward(self, dy: Array, cache: Any, release: bool = False) -> Array:
        """Add to all gradients for the gradient `dy` (B, num_classes) of the logits; return that of the images.

        With ``release=True`` the cache is used up: the part of each layer is let go as soon as it has been read.
        """
        caches = self.kept(cache) if release else list(self.kept(cache))
        dx = self.head.backward(dy, caches.pop())
        dx = self.head_drop.backward(dx, caches.pop())
        dx = self.final_norm().backward(dx, caches.pop())
        dx = ops.pool_backward(dx, caches.pop())
        for block in reversed(self.blocks):
            dx = block.backward(dx, caches.pop())
        dx = self.pos_drop.backward(dx, caches.pop())
        dx, dpos_embed, dcls_token = ops.embed_backward(dx, caches.pop())
        self.pos_embed.add_grad(dpos_embed)
        if self.cls_token is not None and dcls_token is not None:
            self.cls_token.add_grad(dcls_token)
        return self.patch_embed.backward(dx, caches.pop())

    def queries(self, i: int) -> slice:
        """Return the tokens that are wanted of block `i`: all, but one of the last block with a class-token head."""
        last = i == self.config.depth - 1
        return slice(0, 1) if last and self.config.global_pool == "token" else ALL

    def as_made(self) -> bool:
        """Return whether its wiring is that of this file and of `EncoderBlock`: others may take it in their own way."""
        drops = (self.pos_drop, self.head_drop)
        return untouched(self, ViT) and all(
            [*(untouched(drop, Dropout) for drop in drops), *(block.as_made() for block in self.blocks)]
        )

    def final_norm(self) -> LayerNorm:
        """Return the norm before the head."""
        # Tokens are normalised one by one, so that of the class token alone is needed, after pooling.
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
