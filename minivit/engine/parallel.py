"""Training and prediction with a worker pool: the arrays that the workers share, and the work of each worker."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, real_dtype
from minivit.arrays.shared import is_shared, shared_zeros
from minivit.engine.micro_batches import (
    Batch,
    StepOptions,
    Tokens,
    micro_batch_slices,
    predict,
    predict_by_tokens,
    train,
)
from minivit.engine.reduction import reduction_plan
from minivit.engine.worker_pool import Barrier, WorkerPool
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.ops.registry import disabled_kernels, follow_caller


class _Job(NamedTuple):
    """What is sent to the workers; images, labels and results are in the shared arrays."""

    B: int
    options: StepOptions | None  # None to predict
    groups: int  # the most groups of the reduction order
    labels: str  # "whole", "soft" or "none"
    pieces: list[slice]  # of the tokens; empty if each worker takes whole images
    disabled_kernels: frozenset[str]
    float_errors: dict[str, Any]  # what the caller told NumPy to do about them, for layers of its own


def _float_errors() -> dict[str, Any]:
    """Return what NumPy does about floating-point errors in this thread; a callback is not called in a worker."""
    return {kind: "warn" if does in ("call", "log") else does for kind, does in np.geterr().items()}


class _SharedArrays:
    """The arrays that the workers share, with room for `most` images, and the work of each worker."""

    def __init__(self, model: Model, replicas: Sequence[Model], workers: int, micro_batch: int, most: int) -> None:
        config, dtype = model.config, model.parameters.store.values.dtype
        self.model = model
        self.replicas = list(replicas)
        for replica in replicas:
            _ = replica.parameters.store.gradients  # allocates it, before the fork
        self.process = os.getpid()
        self.workers = workers
        self.micro_batch = micro_batch
        self.images = shared_zeros((most, config.height, config.width, config.in_chans), dtype)
        self.labels = shared_zeros((most,), np.int64)
        self.soft_labels = shared_zeros((most, config.num_classes), real_dtype(dtype))
        self.logits = shared_zeros((most, model.num_outputs), dtype)
        self.losses = shared_zeros((most,), dtype)
        self.tokens = Tokens.of(config, min(most, micro_batch), dtype, shared_zeros)

    def work(self, number: int, job: _Job, barrier: Barrier) -> None:
        """Do the share of worker `number`."""
        if os.getpid() != self.process:
            follow_caller(job.disabled_kernels)
        with np.errstate(**job.float_errors):
            self._work(number, job, barrier)

    def _work(self, number: int, job: _Job, barrier: Barrier) -> None:
        B, workers = job.B, self.workers
        images, logits = self.images[:B], self.logits[:B]
        if job.pieces:
            tokens = Tokens(self.tokens.x[:B], self.tokens.qkv[:, :B])
            assert isinstance(self.model, ViT)
            predict_by_tokens(self.model, images, logits, tokens, job.pieces, number, barrier.wait_polling)
            return
        slices = micro_batch_slices(B, self.micro_batch)
        if job.options is None:
            predict(self.model, images, logits, slices, range(number, len(slices), workers))
            return
        labels = {"whole": self.labels[:B], "soft": self.soft_labels[:B], "none": None}[job.labels]
        batch = Batch(images, labels, logits, self.losses)
        plan = reduction_plan(min(job.groups, len(slices)), workers)
        train(self.replicas, batch, job.options, slices, plan, number, workers, barrier.wait)


class ParallelEngine:
    """A worker pool that trains and predicts on batches of at most `most` images.

    Parameters
    ----------
    model : Model
        A model on the host. The workers see the values that it has at each call.
    replicas : sequence of Model
        One for each gradient vector of a training step; the gradients of the first receive the total. Empty for a pool
        that only predicts.
    workers : int
        At least 2.
    micro_batch : int
        Images that a worker takes at a time.
    most : int
        The number of images for which the shared arrays have room.
    """

    def __init__(self, model: Model, replicas: Sequence[Model], workers: int, micro_batch: int, most: int) -> None:
        self.trains = len(replicas) > 0
        self._most = most
        self._last: tuple[Any, bytes] = None, b""  # the last job of a prediction, and what `pickle.dumps` makes of it
        self._arrays = _SharedArrays(model, replicas, workers, micro_batch, most)
        self._pool = WorkerPool(workers, self._arrays.work, is_shared(model.parameters.store.values))

    def fits(self, B: int, trains: bool) -> bool:
        """Return whether the pool can take a batch of `B` images, for training if `trains`."""
        return self._pool.usable and self._most >= B and (self.trains or not trains)

    def close(self) -> None:
        """End all workers but the caller."""
        self._pool.close()

    def train(self, batch: Batch, options: StepOptions, groups: int) -> None:
        """Set the gradients of the first replica, and `logits` and `losses` of `batch`, in at most `groups` groups."""
        B, arrays = len(batch.images), self._arrays
        kind = "none"
        if batch.labels is not None:
            kind = "soft" if batch.labels.dtype.kind == "f" else "whole"
            (arrays.soft_labels if kind == "soft" else arrays.labels)[:B] = batch.labels
        self._run(batch.images, _Job(B, options, groups, kind, [], disabled_kernels(), _float_errors()))
        batch.logits[...] = arrays.logits[:B]
        batch.losses[...] = arrays.losses[: len(batch.losses)]

    def predict(self, images: Array, logits: Array, pieces: list[slice]) -> None:
        """Set `logits` (B, classes); with `pieces`, the workers share the tokens of each image, not the images."""
        job = _Job(len(images), None, 0, "none", pieces, disabled_kernels(), _float_errors())
        if job != self._last[0]:  # to pickle it takes 60 us where the caches are cold
            self._last = job, pickle.dumps(job)
        self._run(images, *self._last)
        logits[...] = self._arrays.logits[: len(images)]

    def _run(self, images: Array, job: _Job, message: bytes | None = None) -> None:
        self._arrays.images[: job.B] = images
        self._pool.run(job, message)
