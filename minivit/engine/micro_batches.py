"""What one worker does of a step: its micro-batches of the batch, or its share of the tokens of a few images.

A worker is given the arrays of the whole step and the numbers of its parts. Nothing here knows how many workers there
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.nn.vit import ViT
from minivit.ops.attention import ALL
from minivit.random import Key

# ``with turn(index, count):`` is entered in the order of the parts, whoever does them.
Turn: TypeAlias = Callable[[int, int], AbstractContextManager[None]]


class Batch(NamedTuple):
    """The arrays of a training step: what comes in and what goes out."""

    images: Array  # (B, height, width, C)
    labels: Array  # (B,) or (B, classes)
    logits: Array  # (B, classes)
    losses: Array  # of each micro-batch, in proportion to its size
    total: Array  # the flat gradient vector


class Step(NamedTuple):
    """What a training step is told beside its arrays."""

    rng: Key | None
    label_smoothing: float
    loss_scale: Array | None = None  # 0-d, by which the gradients are multiplied


def parts_of(B: int, size: int) -> list[slice]:
    """Return the micro-batches of a batch."""
    return [slice(start, min(start + size, B)) for start in range(0, B, size)]


def ready(images: Array, dtype: Any) -> Array:
    """Return `images` contiguous and of `dtype`, as the passes take them."""
    return namespace(images).ascontiguousarray(images.astype(dtype, copy=False))


def train(replica: ViT, batch: Batch, step: Step, parts: list[slice], mine: Iterable[int], turn: Turn) -> None:
    """Take the micro-batches numbered `mine` through the forward and backward pass, and add their gradients in turn."""
    for index in mine:
        replica.parameters.store.forget_gradients()
        take(replica, batch, step, parts, index)
        gradients = replica.parameters.settled_gradients()
        with turn(index, len(parts)):
            if index == 0:
                batch.total[...] = gradients
            else:
                batch.total[...] += gradients


def take(replica: ViT, batch: Batch, step: Step, parts: list[slice], index: int) -> None:
    """Take one micro-batch through the forward and backward pass, into the gradients of `replica`."""
    part = parts[index]
    share = (part.stop - part.start) / parts[-1].stop
    logits, cache = replica.forward(batch.images[part], None if step.rng is None else step.rng[part])
    loss, loss_cache = ops.cross_entropy(logits, batch.labels[part], step.label_smoothing)
    dloss = share if step.loss_scale is None else step.loss_scale * share
    replica.backward(ops.cross_entropy_backward(dloss, loss_cache), cache, release=True)
    batch.logits[part] = logits.astype(batch.logits.dtype, copy=False)
    batch.losses[index] = loss * share


def predict(replica: ViT, images: Array, logits: Array, parts: list[slice], mine: Iterable[int]) -> None:
    """Set the rows of `logits` (B, classes) for the micro-batches numbered `mine`."""
    dtype = replica.parameters.store.values.dtype
    for index in mine:
        logits[parts[index]] = replica(ready(images[parts[index]], dtype)).astype(logits.dtype, copy=False)


class Tokens(NamedTuple):
    """The arrays by which workers share the tokens of a few images."""

    x: Array  # (B, N, D): what the last block makes of them
    qkv: Array  # (2, B, N, 3 D): of even and of odd blocks


def predict_by_tokens(
    replica: ViT,
    images: Array,
    logits: Array,
    tokens: Tokens,
    pieces: list[slice],
    mine: Iterable[int],
    meet: Callable[[], None],
) -> None:
    """Take the pieces of the tokens numbered `mine` through the model in evaluation; who has the first sets `logits`.

    The workers meet once a block, when the queries, keys and values of all tokens are there.
    """
    config = replica.config
    cls_token = None if replica.cls_token is None else replica.cls_token.value
    every, _ = ops.embed(replica.patch_embed(images), replica.pos_embed.value, cls_token, keep=False)
    x = {number: every[:, pieces[number]] for number in mine}
    for i, block in enumerate(replica.blocks):
        qkv = tokens.qkv[i % 2]
        for number in x:
            qkv[:, pieces[number]] = block.attn.qkv(block.norm1(x[number]))
        meet()
        if replica.queries(i) != ALL:  # the class token, the first of the first piece
            pieces = [replica.queries(i)]
            x = {number: x[number][:, pieces[0]] for number in x if number == 0}
        for number in x:
            h, _ = ops.attention(qkv, block.attn.num_heads, None, pieces[number], keep=False)
            h = x[number] + block.attn.proj(h)
            x[number] = h + block.mlp(block.norm2(h))
    for number in x:
        tokens.x[:, pieces[number]] = x[number]
    meet()
    if 0 in x:
        pooled, _ = ops.pool(tokens.x, config.global_pool, int(config.class_token), keep=False)
        logits[...] = replica.head(replica.final_norm()(pooled))
