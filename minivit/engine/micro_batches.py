"""The work of one worker in a step or a prediction: its micro-batches, or its share of the tokens of a few images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace
from minivit.engine.reduction import Round, add_vectors, members
from minivit.nn.config import ViTConfig
from minivit.nn.conv_stem import ConvStem
from minivit.nn.layer import Layer
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.ops.attention import ALL
from minivit.random import Key

_ROWS = 4  # OpenBLAS multiplies rows in blocks of 4, and a remainder is slow: 97 to 99 rows take the time of 108


class Batch(NamedTuple):
    """The arrays of a training step: its input, and its results except for the gradients."""

    images: Array  # (B, height, width, C)
    labels: Array | None  # (B,) or (B, classes); None for a model that gives losses
    logits: Array  # (B, classes), or the losses (B, 1) of the images
    losses: Array  # of each micro-batch, weighted by its share of the batch


class StepOptions(NamedTuple):
    """The options of a training step."""

    rng: Key | None
    label_smoothing: float
    loss_scale: Array | None = None  # 0-d; multiplies the gradients
    first_block: int = 0  # the first block that is trained; the layers before it get no gradient


def micro_batch_slices(B: int, size: int) -> list[slice]:
    """Return the slices that cut a batch of B images into micro-batches of `size`; the last may be smaller."""
    return [slice(start, min(start + size, B)) for start in range(0, B, size)]


@np.errstate(under="ignore")
def ready(images: Array, dtype: Any) -> Array:
    """Return `images` contiguous and of `dtype`, as the passes take them."""
    return namespace(images).ascontiguousarray(images.astype(dtype, copy=False))


def train(
    replicas: Sequence[Model],
    batch: Batch,
    options: StepOptions,
    slices: list[slice],
    plan: Sequence[Round],
    number: int = 0,
    workers: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Do the share of worker `number` of a training step; the total is in the gradients of the first replica.

    Parameters
    ----------
    replicas : sequence of Model
        One for each gradient vector of the plan.
    plan : sequence of Round
        The reduction order; see `minivit.engine.reduction`.
    wait : callable
        Returns when all workers have called it.
    """
    vectors = [replica.parameters.store.gradients for replica in replicas]
    replicas[0].parameters.clear_gaps()  # the user may have written there
    groups = plan[-1].groups.stop
    for round_ in plan:
        if number < len(round_.groups):
            indices = members(round_.groups[number], groups, len(slices))
            accumulate(replicas[round_.vectors[number]], batch, options, slices, indices)
        if round_.sums:
            wait()
            add_vectors(vectors, round_.sums, number, workers)
            if round_ is not plan[-1]:
                wait()  # until every worker has read the vectors that the next round overwrites


def accumulate(replica: Layer, batch: Batch, options: StepOptions, slices: list[slice], indices: Iterable[int]) -> None:
    """Set the gradients of `replica` to the sum over the micro-batches numbered `indices`, added in this order."""
    replica.parameters.store.forget_gradients()
    for index in indices:
        forward_backward(replica, batch, options, slices, index)
    replica.parameters.complete_gradients()


def forward_backward(replica: Layer, batch: Batch, options: StepOptions, slices: list[slice], index: int) -> None:
    """Run the forward and backward pass of one micro-batch, and add to the gradients of `replica`."""
    part = slices[index]
    share = (part.stop - part.start) / slices[-1].stop
    outputs, cache = replica.forward(batch.images[part], None if options.rng is None else options.rng[part])
    with np.errstate(under="ignore"):
        dloss = share if options.loss_scale is None else options.loss_scale * share
        if batch.labels is None:
            loss, doutputs = outputs.mean(), namespace(outputs).full_like(outputs, dloss / len(outputs))
        else:
            loss, loss_cache = ops.cross_entropy(outputs, batch.labels[part], options.label_smoothing)
            doutputs = ops.cross_entropy_backward(dloss, loss_cache)
        batch.losses[index] = loss * share
    # Only where it is needed: the backward pass of a user's own model may not take it.
    ends: dict[str, Any] = {"first_block": options.first_block} if options.first_block else {}
    if isinstance(replica, Model) and replica.takes_release:
        ends["release"] = True
    if type(replica) is ViT and isinstance(replica.patch_embed, ConvStem):
        ends["images"] = False
    replica.backward(doutputs, cache, **ends)
    batch.logits[part] = _rows(outputs, batch.logits)


def predict(replica: Layer, images: Array, logits: Array, slices: list[slice], indices: Iterable[int]) -> None:
    """Set the rows of `logits` (B, outputs) for the micro-batches numbered `indices`."""
    dtype = replica.parameters.store.values.dtype
    for index in indices:
        part = slices[index]
        logits[part] = _rows(replica(ready(images[part], dtype)), logits)


def _rows(outputs: Array, logits: Array) -> Array:
    """Return the outputs of some images as rows of `logits`: a loss (B,) becomes a column."""
    return outputs.reshape(len(outputs), -1).astype(logits.dtype, copy=False)


class Tokens(NamedTuple):
    """The shared arrays of workers that each compute some of the tokens of a few images."""

    x: Array  # (B, N, D): the result of the last block
    qkv: Array  # (2, B, N, 3 H K): of even and of odd blocks

    @classmethod
    def of(cls, config: ViTConfig, B: int, dtype: Any, allocate: Callable[[tuple[int, ...], Any], Array]) -> Tokens:
        """Return the arrays for `B` images; ``allocate(shape, dtype)`` makes each."""
        N, D, width = config.num_tokens, config.embed_dim, 3 * config.num_heads * config.head_width
        return cls(allocate((B, N, D), dtype), allocate((2, B, N, width), dtype))


def pieces_of_tokens(N: int) -> list[slice]:
    """Return the slices that cut the tokens of an image into two pieces, the first of a multiple of `_ROWS` tokens."""
    return micro_batch_slices(N, _rounded(-(-N // 2)))


def _rounded(rows: int) -> int:
    return -(-rows // _ROWS) * _ROWS


def predict_by_tokens(
    replica: ViT,
    images: Array,
    logits: Array,
    tokens: Tokens,
    pieces: list[slice],
    number: int,
    wait: Callable[[], None],
) -> None:
    """Run the model in evaluation on one piece of the tokens; the worker of the first piece sets `logits`.

    `wait` is the barrier of all workers. They wait once in each block, for the queries, keys and values of all tokens,
    and once at the end, unless the last block computes the class token alone. A worker without a piece only waits.

    A worker computes a multiple of `_ROWS` tokens. The second piece is therefore extended to the left: both workers
    compute the tokens where the pieces overlap.
    """
    last = len(replica.blocks) - 1
    class_token_only = replica.queries(last) != ALL  # the first token of the first piece
    if number >= len(pieces):
        for _ in range(last + 1 if class_token_only else last + 2):
            wait()
        return
    piece = pieces[number]
    start = max(0, piece.stop - _rounded(piece.stop - piece.start))
    before = piece.start - start  # tokens that another worker computes too
    x = replica.embed(images, keep=False, tokens=slice(start, piece.stop))[0][:, start : piece.stop]
    for i, block in enumerate(replica.blocks):
        shared = tokens.qkv[i % 2]

        def gather(qkv: Array, queries: slice, shared: Array = shared) -> tuple[Array, slice]:
            shared[:, piece] = qkv[:, before:]
            wait()
            first, stop, _ = queries.indices(qkv.shape[1])
            return shared, slice(start + first, start + stop)

        x, _ = block.forward(x, keep=False, queries=replica.queries(i), gather=gather)
    if not class_token_only:
        tokens.x[:, piece] = x[:, before:]
        wait()
    if number == 0:
        logits[...] = replica.classify(x if class_token_only else tokens.x, keep=False)[0]
