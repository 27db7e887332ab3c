"""Patches of images, each mapped to a token."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.cost import Cost, total_cost
from minivit.nn.initializers import patch_initializers
from minivit.nn.layer import Layer
from minivit.nn.layer_norm import LayerNorm
from minivit.nn.linear import Linear
from minivit.ops.attention import ALL
from minivit.ops.unfold import windows
from minivit.random import Key, fold


class PatchEmbed(Layer):
    """Patches of images, each mapped to a token of width D: (B, height, width, C) to (B, N, D).

    Parameters
    ----------
    patch_size : tuple of int
        Height and width of a patch.
    in_chans, embed_dim : int
        C and D.
    init : str
        "timm" or "jax": the initialisation of the parameters.
    stride : tuple of int, optional
        Vertical and horizontal distance between patches; by default `patch_size`. Patches overlap if it is smaller.
    norm : str
        "none"; "after" for a layer norm of the tokens (timm's `norm_layer`), or "both" for one of the flattened patches
        too (the ViT and SimpleViT of vit-pytorch).
    eps : float
        Of the layer norms.
    bias : bool
        Whether the projection has a bias.
    """

    def __init__(
        self,
        patch_size: tuple[int, int],
        in_chans: int,
        embed_dim: int,
        init: str = "jax",
        stride: tuple[int, int] | None = None,
        norm: str = "none",
        eps: float = 1e-6,
        bias: bool = True,
    ) -> None:
        if norm not in ("none", "after", "both"):
            raise ValueError(f"norm is {norm!r}; expected 'none', 'after' or 'both'")
        fan_in = patch_size[0] * patch_size[1] * in_chans
        self.patch_size = patch_size
        self.stride = stride or patch_size
        self.patch_norm = LayerNorm(fan_in, eps) if norm == "both" else None
        self.proj = Linear(fan_in, embed_dim, *patch_initializers(init, fan_in), bias=bias)
        self.norm = None if norm == "none" else LayerNorm(embed_dim, eps)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the numbers of rows and columns of tokens for images of this size in pixels."""
        return windows((height, width), self.patch_size, self.stride, (0, 0))

    def forward(self, x: Array, rng: Key | None = None, keep: bool = True, only: slice = ALL) -> tuple[Array, Any]:
        """Cut images into patches and project them; in inference, `only` some of them: the other tokens are zero."""
        caches: list[Any] = [None]
        if self.stride == self.patch_size:
            x, caches[0] = ops.patches(x, self.patch_size, keep=keep)
        else:
            x, caches[0] = ops.unfold(x, self.patch_size, self.stride, keep=keep)
        N = x.shape[1]
        x = x[:, only]
        for name, layer in self._layers():
            x, cache = layer.forward(x, fold(rng, name), keep)
            caches.append(cache)
        if only != ALL:
            y = namespace(x).zeros((len(x), N, x.shape[2]), dtype=x.dtype)
            y[:, only] = x
            x = y
        return x, tuple(caches) if keep else None

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return the gradient of the images."""
        cache1, *caches = self.kept(cache)
        dx = dy
        for _, layer in reversed(self._layers()):
            dx = layer.backward(dx, caches.pop())
        if self.stride == self.patch_size:
            return ops.patches_backward(dx, cache1)
        return ops.unfold_backward(dx, cache1)

    def _layers(self) -> list[tuple[str, Layer]]:
        """Return the layers for the flattened patches, in their order."""
        named = (("patch_norm", self.patch_norm), ("proj", self.proj), ("norm", self.norm))
        return [(name, layer) for name, layer in named if layer is not None]

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image of `shape` (height, width, C)."""
        rows, columns = self.grid(*shape[:2])
        N, (fan_in, D) = rows * columns, self.proj.weight.shape
        sizes = {"patch_norm": (N, fan_in), "proj": (N, fan_in), "norm": (N, D)}
        return total_cost(layer.cost(sizes[name]) for name, layer in self._layers())
