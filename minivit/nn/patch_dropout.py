"""Patch dropout: training with a random part of the patches (Liu et al. 2022, arXiv:2208.07220)."""

from __future__ import annotations

from typing import Any

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.cost import Cost
from minivit.nn.layer import Layer
from minivit.random import Key, RngLike, as_key, expect_rate


class PatchDropout(Layer):
    """A random part of the patch tokens, in random order: (B, N, D) to (B, N', D); all tokens in evaluation.

    As in timm, an image keeps the whole part of (1 - rate) times its patches, and at least one, and its tokens are not
    scaled. Which ones it keeps depends on the key of the image alone.

    Parameters
    ----------
    rate : float
        The fraction of the patches that is left out, at least 0 and below 1.
    num_prefix_tokens : int
        The number of tokens in front of the patches, which are kept.
    """

    def __init__(self, rate: float, num_prefix_tokens: int = 0) -> None:
        expect_rate(rate)
        if num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens is {num_prefix_tokens}; expected at least 0")
        self.rate = rate
        self.num_prefix_tokens = num_prefix_tokens

    def num_kept(self, num_tokens: int) -> int:
        """Return the number of tokens that are left of `num_tokens` in training, prefix tokens included."""
        patches = num_tokens - self.num_prefix_tokens
        return self.num_prefix_tokens + min(patches, max(1, int(patches * (1.0 - self.rate))))

    def index(self, key: Key, num_tokens: int) -> Array:
        """Return the numbers (B, N') of the tokens that the images of `key` keep: all prefix tokens, then patches."""
        prefix = self.num_prefix_tokens
        bits = key.bits((len(key.sample_ids), num_tokens - prefix))
        xp = namespace(bits)
        order = xp.argsort(bits, axis=1, kind="stable")[:, : self.num_kept(num_tokens) - prefix]
        fixed = xp.broadcast_to(xp.arange(prefix, dtype=order.dtype), (len(order), prefix))
        index: Array = xp.concatenate([fixed, order + prefix], axis=1)
        return index

    def forward(self, x: Array, rng: RngLike = None, keep: bool = True) -> tuple[Array, Any]:
        """Leave out some patches of `x`, each image its own; all images keep the same number."""
        rng = as_key(rng, len(x), namespace(x))
        if rng is None or self.rate == 0.0:
            return x, () if keep else None
        return ops.take_tokens(x, self.index(rng, x.shape[1]), keep=keep)

    def backward(self, dy: Array, cache: Any) -> Array:
        """Return ``dx``, with zeros at the tokens that were left out."""
        return dy if cache == () else ops.take_tokens_backward(dy, cache)

    def cost(self, shape: tuple[int, ...]) -> Cost:
        """Return the cost for one image's tokens (N, D): the numbers of the kept tokens."""
        return Cost(0, self.num_kept(shape[0]) if self.rate else 0)
