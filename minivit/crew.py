"""A team at work on a model: the arrays that its members share, and what each does of a step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, real_dtype
from minivit.micro_batches import Batch, Step, Tokens, parts_of, predict, predict_by_tokens, train
from minivit.ops.registry import reference_only, set_aside
from minivit.team import Team, Together, shared_array
from minivit.vit import ViT


class _Job(NamedTuple):
    """What the members are told beside the arrays."""

    B: int
    step: Step | None  # None to predict
    soft_labels: bool
    pieces: list[slice]  # of the tokens, or none where each takes whole images
    set_aside: frozenset[str]


class Crew:
    """`size` workers for batches of at most `most` images.

    Parameters
    ----------
    model : ViT
        On the host. Its values are copied at every step.
    size : int
        At least 2.
    micro_batch : int
        Images a worker takes at a time.
    most : int
        Images for which the shared arrays have room.
    """

    def __init__(self, model: ViT, size: int, micro_batch: int, most: int) -> None:
        config, source = model.config, model.parameters.store.peek()
        dtype, classes = source.dtype, config.num_classes
        self._model = model
        self._size = size
        self._micro_batch = micro_batch
        self._most = most
        self._images = shared_array((most, config.height, config.width, config.in_chans), dtype)
        self._labels = shared_array((most,), np.int64)
        self._soft_labels = shared_array((most, classes), real_dtype(dtype))
        self._logits = shared_array((most, classes), dtype)
        self._losses = shared_array((most,), dtype)
        self._values = shared_array(source.shape, dtype)
        self._total = shared_array(source.shape, dtype)
        few, N, D = min(most, micro_batch), config.num_tokens, config.embed_dim
        self._tokens = Tokens(shared_array((few, N, D), dtype), shared_array((2, few, N, 3 * D), dtype))
        self._replicas = [model.replica(self._values) for _ in range(size)]
        # The caller's gradients may lie where the total is to come: it comes last.
        self._replicas[0].parameters.store.share_gradients(model.parameters.store)
        self._version: int | None = None  # of the model's values, when they were copied last
        self._team = Team(size, self._work)

    def fits(self, B: int) -> bool:
        """Return whether the crew can take a batch of `B` images."""
        return self._team.usable and self._most >= B

    def close(self) -> None:
        """End all workers but the caller."""
        self._team.close()

    def train(self, batch: Batch, step: Step) -> None:
        """Do what `micro_batches.train` does for all parts of `batch`."""
        B = len(batch.images)
        self._model.parameters.clear_gaps()  # the caller's own gradients lie there
        soft = batch.labels.dtype.kind == "f"
        (self._soft_labels if soft else self._labels)[:B] = batch.labels
        self._run(batch.images, _Job(B, step, soft, [], set_aside()))
        batch.logits[...] = self._logits[:B]
        batch.losses[...] = self._losses[: len(batch.losses)]
        batch.total[...] = self._total

    def predict(self, images: Array, logits: Array, pieces: list[slice]) -> None:
        """Do what `micro_batches.predict` does, or with `pieces` what `predict_by_tokens` does."""
        self._run(images, _Job(len(images), None, False, pieces, set_aside()))
        logits[...] = self._logits[: len(images)]

    def _run(self, images: Array, job: _Job) -> None:
        store = self._model.parameters.store
        if store.version is None or store.version != self._version:
            self._values[...] = store.peek()
            self._version = store.version
        self._images[: job.B] = images
        self._team.run(job)

    def _work(self, number: int, job: _Job, together: Together) -> None:
        with reference_only(*job.set_aside) if job.set_aside else nullcontext():
            self._share(number, job, together)

    def _share(self, number: int, job: _Job, together: Together) -> None:
        B, replica = job.B, self._replicas[number]
        images, logits = self._images[:B], self._logits[:B]
        if job.pieces:
            tokens = Tokens(self._tokens.x[:B], self._tokens.qkv[:, :B])
            mine = range(number, len(job.pieces), self._size)
            predict_by_tokens(replica, images, logits, tokens, job.pieces, mine, together.meet)
            return
        parts = parts_of(B, self._micro_batch)
        mine = range(number, len(parts), self._size)
        if job.step is None:
            predict(replica, images, logits, parts, mine)
            return
        labels: Any = self._soft_labels if job.soft_labels else self._labels
        batch = Batch(images, labels[:B], logits, self._losses, self._total)
        train(replica, batch, job.step, parts, mine, together.turn)
