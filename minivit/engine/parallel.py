"""A team at work on a model: the arrays that its members share, and what each does of a step."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, real_dtype
from minivit.arrays.shared import is_shared, shared_zeros
from minivit.engine.micro_batches import Batch, Step, Tokens, parts_of, predict, predict_by_tokens, train
from minivit.engine.worker_pool import Team, Together
from minivit.nn.parameters import FlatStore
from minivit.nn.vit import ViT
from minivit.ops.registry import set_aside, set_aside_these


class _Job(NamedTuple):
    """What the members are told beside the arrays."""

    B: int
    step: Step | None  # None to predict
    soft_labels: bool
    pieces: list[slice]  # of the tokens, or none where each takes whole images
    set_aside: frozenset[str]


class _Desk:
    """What the members share: arrays in shared memory, and a replica of the model for each."""

    def __init__(self, model: ViT, size: int, micro_batch: int, most: int) -> None:
        config, source = model.config, model.parameters.store.values
        dtype, classes = source.dtype, config.num_classes
        self.process = os.getpid()
        self.size = size
        self.micro_batch = micro_batch
        self.images = shared_zeros((most, config.height, config.width, config.in_chans), dtype)
        self.labels = shared_zeros((most,), np.int64)
        self.soft_labels = shared_zeros((most, classes), real_dtype(dtype))
        self.logits = shared_zeros((most, classes), dtype)
        self.losses = shared_zeros((most,), dtype)
        self.total = shared_zeros(source.shape, dtype)
        few, N, D = min(most, micro_batch), config.num_tokens, config.embed_dim
        self.tokens = Tokens(shared_zeros((few, N, D), dtype), shared_zeros((2, few, N, 3 * D), dtype))
        self.replicas = [model.replica() for _ in range(size)]

    def work(self, number: int, job: _Job, together: Together) -> None:
        """Do the share of member `number`."""
        if os.getpid() != self.process:
            set_aside_these(job.set_aside)
        B, replica = job.B, self.replicas[number]
        images, logits = self.images[:B], self.logits[:B]
        if job.pieces:
            tokens = Tokens(self.tokens.x[:B], self.tokens.qkv[:, :B])
            mine = range(number, len(job.pieces), self.size)
            predict_by_tokens(replica, images, logits, tokens, job.pieces, mine, together.meet)
            return
        parts = parts_of(B, self.micro_batch)
        mine = range(number, len(parts), self.size)
        if job.step is None:
            predict(replica, images, logits, parts, mine)
            return
        labels: Any = self.soft_labels if job.soft_labels else self.labels
        batch = Batch(images, labels[:B], logits, self.losses, self.total)
        train(replica, batch, job.step, parts, mine, together.turn)


class Crew:
    """`size` workers for batches of at most `most` images.

    Parameters
    ----------
    model : ViT
        On the host, as the workers are to have it.
    store : FlatStore
        Its values and gradients. The workers have the values as they are at every step.
    size : int
        At least 2.
    micro_batch : int
        Images a worker takes at a time.
    most : int
        Images for which the shared arrays have room.
    """

    def __init__(self, model: ViT, store: FlatStore, size: int, micro_batch: int, most: int) -> None:
        self._store = store
        self._most = most
        self._desk = _Desk(model, size, micro_batch, most)
        # The caller's gradients may lie where the total is to come: it comes last.
        self._own = self._desk.replicas[0].parameters
        self._own.store.share_gradients(store)
        self._team = Team(size, self._desk.work, is_shared(store.values))

    def fits(self, B: int) -> bool:
        """Return whether the crew can take a batch of `B` images."""
        return self._team.usable and self._most >= B

    def close(self) -> None:
        """End all workers but the caller."""
        self._team.close()

    def train(self, batch: Batch, step: Step) -> None:
        """Do what `micro_batches.train` does for all parts of `batch`."""
        B, desk = len(batch.images), self._desk
        self._own.clear_gaps()
        soft = batch.labels.dtype.kind == "f"
        (desk.soft_labels if soft else desk.labels)[:B] = batch.labels
        self._run(batch.images, _Job(B, step, soft, [], set_aside()))
        batch.logits[...] = desk.logits[:B]
        batch.losses[...] = desk.losses[: len(batch.losses)]
        batch.total[...] = desk.total

    def predict(self, images: Array, logits: Array, pieces: list[slice]) -> None:
        """Do what `micro_batches.predict` does, or with `pieces` what `predict_by_tokens` does."""
        self._run(images, _Job(len(images), None, False, pieces, set_aside()))
        logits[...] = self._desk.logits[: len(images)]

    def _run(self, images: Array, job: _Job) -> None:
        self._desk.images[: job.B] = images
        self._team.run(job)
