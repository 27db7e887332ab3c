"""Measures of a model's attention in evaluation: how far it reaches, and its rollout over the image.

A model of 16 bits is measured in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array
from minivit.errors import UserError
from minivit.nn.vit import ViT
from minivit.ops.interception import Interception, intercepted
from minivit.ops.registry import reference_only_here
from minivit.tracing.measures import Floats, expect_finite, expect_vit, host, part_of

_MOST_NUMBERS = 1 << 24  # attention weights in memory at a time


def attention_distance(model: ViT, images: Array, normalize: bool = True) -> Floats:
    """Return how far each head looks: the mean distance in pixels of query and key, weighted by the attention (D.7).

    The distance is that of the centres of two patches. The mean is over all patches as queries, and over the images.
    Class and register tokens have no place in the image and are left out.

    Parameters
    ----------
    model : ViT
        The model.
    images : Array
        (B, height, width, C), as `ViT.forward` takes them.
    normalize : bool
        Whether the weights of a query are divided by their sum over the patches, so that this is a weighted mean.
        Without, attention to the class token counts as a distance of 0, as in Keras' example of this measure.

    Returns
    -------
    distance : array
        (L, H), in pixels.

    Raises
    ------
    UserError
        A block does not call an op of attention, its weights are not finite, or the blocks differ in their numbers of
        heads.
    """
    prefix = expect_vit(model).config.num_prefix_tokens
    between = patch_distances(model)
    total: Any = 0.0
    for weights in _attention(model, images):
        sums = []
        heads = {each.shape[1]: f"blocks.{i} has {each.shape[1]}" for i, each in enumerate(weights.blocks)}
        if len(heads) > 1:
            raise UserError(f"the blocks differ in their numbers of heads ({', '.join(heads.values())}); expected one")
        for each in weights.blocks:
            among = each[:, :, prefix:, prefix:]  # (B, H, patches, patches)
            mean = (among * between).sum(axis=-1)
            if normalize:
                mean /= np.maximum(among.sum(axis=-1), np.finfo(np.float64).tiny)
            sums.append(mean.mean(axis=-1).sum(axis=0))
        total = total + np.stack(sums)
    return np.asarray(total / len(images), np.float64)


def patch_distances(model: ViT) -> Floats:
    """Return the distance in pixels of the centres of any two patches, (patches, patches)."""
    (rows, columns), (S, R) = model.config.grid, model.config.stride
    y, x = (axis.reshape(-1) for axis in np.mgrid[:rows, :columns].astype(np.float64))
    return np.hypot(S * (y[:, None] - y), R * (x[:, None] - x))


def attention_rollout(model: ViT, images: Array) -> Floats:
    """Return how much each patch contributes to what the head reads, by attention rollout (Abnar and Zuidema 2020).

    The weights W of a block are averaged over its heads, and mixed with the residual connection: A = (W + I) / 2, with
    rows that sum to 1. The rollout is A_L ... A_2 A_1. The row of the class token is returned if the head reads it;
    the mean of the rows of the tokens that are pooled; or their mean weighted by attention pooling.

    Parameters
    ----------
    model : ViT
        The model.
    images : Array
        (B, height, width, C), as `ViT.forward` takes them.

    Returns
    -------
    rollout : array
        (B, rows, columns). Their sum is 1 less what comes from class and register tokens.

    Raises
    ------
    UserError
        A block, or attention pooling, does not call an op of attention, or its weights are not finite.
    """
    config = expect_vit(model).config
    found = []
    for weights in _attention(model, images):
        B, _, N, _ = weights.blocks[0].shape
        rollout = np.broadcast_to(np.eye(N), (B, N, N))
        for each in weights.blocks:
            mixed = 0.5 * each.mean(axis=1) + 0.5 * np.eye(N)
            mixed /= mixed.sum(axis=-1, keepdims=True)
            rollout = mixed @ rollout
        first = config.first_pooled
        if config.global_pool == "token":
            read = rollout[:, 0]
        elif config.global_pool == "map":
            if weights.pool is None:
                raise UserError("attn_pool has no attention weights: it does not call an op of attention")
            pool = expect_finite(weights.pool, "the attention weights of attn_pool")
            read = (pool.mean(axis=1) @ rollout[:, first:])[:, 0]
        else:
            read = rollout[:, first:].mean(axis=1)
        found.append(read[:, config.num_prefix_tokens :].reshape(B, *config.grid))
    return np.concatenate(found)


class _Weights(NamedTuple):
    """The attention weights of some images."""

    blocks: list[Floats]  # (B, H, N, N) for each block
    pool: Floats | None  # (B, H, 1, N') of attention pooling


def _attention(model: ViT, images: Array) -> Iterator[_Weights]:
    """Yield the attention weights of the images, some images at a time; nothing else of the pass is kept."""
    config = expect_vit(model).config
    model.check_images(images)
    if images.dtype.itemsize == 2:  # some ops have no references for it
        model, images = model.astype("float32"), images.astype("float32")
    piece = max(1, _MOST_NUMBERS // (config.depth * config.num_heads * config.num_tokens**2))
    names = [f"blocks.{i}" for i in range(len(model.blocks))]
    for start in range(0, len(images), piece):
        softmaxes = _Softmaxes(model)
        with reference_only_here(), intercepted(softmaxes):
            model.forward(images[start : start + piece], keep=False)
        found = softmaxes.found
        for name in names:
            if name not in found or found[name].shape[2:] != (config.num_tokens,) * 2:
                raise UserError(f"{name} has no attention weights of all tokens: it does not call ops.attention")
            expect_finite(found[name], f"the attention weights of {name}")
        yield _Weights([found[name] for name in names], found.get("attn_pool"))


class _Softmaxes(Interception):
    """Keeps the result of the softmax over keys in each part of a model, (B, H, M, N)."""

    def __init__(self, model: ViT) -> None:
        self.found: dict[str, Floats] = {}
        self._parts = {id(layer): part_of(name) for name, layer in reversed(list(model.named_layers()))}
        self._blocks: dict[int, list[str]] = {}  # a block may stand in several places, and is called in their order
        for i, block in enumerate(model.blocks):
            self._blocks.setdefault(id(block), []).append(f"blocks.{i}")
        self._running: list[str] = []

    def layer_forward(self, layer: Any, run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Remember which part of the model runs."""
        part = self._running[-1] if self._running else ""
        if places := self._blocks.get(id(layer)):
            part = places.pop(0)
        elif not part.startswith("blocks."):
            part = self._parts.get(id(layer), part)
        self._running.append(part)
        try:
            return run(*args, **kwargs)
        finally:
            self._running.pop()

    def op_forward(self, name: str, names: Sequence[str], run: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Keep the weights."""
        result = run(*args, **kwargs)
        if name == "softmax" and self._running and result[0].ndim == 4:
            self.found[self._running[-1]] = host(result[0])
        return result
