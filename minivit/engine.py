"""The step engine: a batch in; a loss and gradients, or logits, out.

A batch is cut into micro-batches that fit in cache. Each worker thread takes its own through the whole forward and
backward pass with single-threaded BLAS, on a replica of the model: shared values, own gradients. The gradients of the
micro-batches are added into one total in the order of their index, so that the sum has the same bits for any number of
threads; memory does not grow with the batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Self

import numpy as np

from minivit import ops
from minivit.arrays import Array, namespace, real_dtype, to_host
from minivit.errors import UserError
from minivit.keys import Key
from minivit.machine import cores, keep_freed_pages, single_threaded_blas
from minivit.vit import ViT


class Engine:
    """Runs a model over batches of any size.

    Values are checked here on the host: labels in range, images finite.

    Parameters
    ----------
    model : ViT
        Its gradients receive the total of each step.
    threads : int, optional
        Worker threads; the machine's cores by default. On a device the step runs whole, on one.
    micro_batch : int, optional
        Images a thread takes at a time; by default what the model says (`ViTConfig.micro_batch`).
    """

    def __init__(self, model: ViT, threads: int | None = None, micro_batch: int | None = None) -> None:
        for name, value in (("threads", threads), ("micro_batch", micro_batch)):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; expected at least 1")
        on_host = namespace(model.parameters.store.values) is np
        self.model = model
        self.threads = (threads or cores()) if on_host else 1
        self.micro_batch = micro_batch or (model.config.micro_batch if on_host else None)
        self._replicas = [model.replica() for _ in range(self.threads)]
        self._pool = ThreadPoolExecutor(self.threads, "minivit") if self.threads > 1 else None
        if on_host:
            keep_freed_pages()

    def close(self) -> None:
        """End the worker threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the worker threads."""
        self.close()

    def loss_and_gradients(
        self, images: Array, labels: Array, rng: Key | None = None, label_smoothing: float = 0.0
    ) -> Array:
        """Return the mean loss of a batch, and set the model's gradients to those of this loss.

        Parameters
        ----------
        images : Array
            (B, height, width, C) of the model's dtype.
        labels : Array
            (B,) integers below the number of classes, or (B, classes) soft targets.
        rng : Key, optional
            The key of the B samples, for dropout; None runs the model in evaluation mode.
        label_smoothing : float
            See `ops.cross_entropy`.

        Returns
        -------
        loss : Array
            0-d.
        """
        return self.training_step(images, labels, rng, label_smoothing)[0]

    def training_step(
        self, images: Array, labels: Array, rng: Key | None = None, label_smoothing: float = 0.0
    ) -> tuple[Array, Array]:
        """Do what `loss_and_gradients` does, and return the logits (B, classes) beside the loss."""
        B = self._check(images, labels)
        if rng is not None and len(rng.sample_ids) != B:
            raise UserError(f"the key names {len(rng.sample_ids)} samples; expected {B}, one for each image")
        xp = namespace(images)
        losses: list[Array] = []
        logits = xp.empty((B, self.model.config.num_classes), dtype=images.dtype)
        total = self.model.parameters.store.gradients
        total[...] = 0

        def run(replica: ViT, part: slice) -> Callable[[], None]:
            share = (part.stop - part.start) / B
            gradients = replica.parameters.store.gradients
            gradients[...] = 0
            logits[part], cache = replica.forward(images[part], None if rng is None else rng[part])
            loss, loss_cache = ops.cross_entropy(logits[part], labels[part], label_smoothing)
            replica.backward(ops.cross_entropy_backward(share, loss_cache), cache)

            def add() -> None:
                nonlocal total
                total += gradients
                losses.append(loss * share)

            return add

        self._each(B, run)
        loss = losses[0]
        for part_loss in losses[1:]:
            loss = loss + part_loss
        return xp.asarray(loss), logits

    def predict(self, images: Array) -> Array:
        """Return logits (B, classes) in evaluation mode; on the host in memory that does not grow with B."""
        B = self._check(images)
        xp = namespace(images)
        logits = xp.empty((B, self.model.config.num_classes), dtype=images.dtype)

        def run(replica: ViT, part: slice) -> Callable[[], None]:
            logits[part] = replica(images[part])
            return lambda: None

        self._each(B, run)
        return logits

    def _each(self, B: int, run: Callable[[ViT, slice], Callable[[], None]]) -> None:
        """Call `run` for each micro-batch on the worker threads, and what it returns in the micro-batches' order."""
        size = self.micro_batch or B
        parts = [slice(start, min(start + size, B)) for start in range(0, B, size)]
        if self._pool is None or len(parts) == 1:
            with single_threaded_blas():
                for part in parts:
                    run(self._replicas[0], part)()
            return
        turns = _Turns(len(parts))

        def work(replica: ViT) -> None:
            try:
                while (index := turns.take()) is not None:
                    turns.finish(index, run(replica, parts[index]))
            except BaseException:
                turns.stop()
                raise

        with single_threaded_blas():
            futures = [self._pool.submit(work, replica) for replica in self._replicas]
            try:
                errors = [error for future in futures if (error := future.exception()) is not None]
            finally:  # after an interrupt too, no thread may go on writing to the replicas and the total
                turns.stop()
                wait(futures)
        if errors:
            raise errors[0]

    def _check(self, images: Array, labels: Array | None = None) -> int:
        namespace(images) if labels is None else namespace(images, labels)
        self.model.check_images(images)
        if namespace(images) is np and not np.isfinite(images).all():
            bad = next(i for i, image in enumerate(images) if not np.isfinite(image).all())
            raise UserError(f"image {bad} of the batch holds NaN or infinity; every value must be finite")
        B = len(images)
        if labels is not None:
            check_labels(labels, B, self.model.config.num_classes, images.dtype)
        return B


def check_labels(labels: Array, B: int, num_classes: int, dtype: Any) -> None:
    """Raise unless `labels` are B integers below `num_classes`, or (B, num_classes) soft targets.

    The range is checked on the host alone; on a device it was checked when the labels entered.
    """
    if labels.dtype.kind in "iu":
        if labels.shape != (B,):
            raise UserError(f"labels have shape {labels.shape}; expected ({B},), one for each image")
        if namespace(labels) is np and not ((labels >= 0) & (labels < num_classes)).all():
            host = to_host(labels)
            at = int(np.argmax((host < 0) | (host >= num_classes)))
            raise UserError(
                f"label {host[at]} of image {at} is out of range; the model has classes 0 to {num_classes - 1}"
            )
    elif labels.shape != (B, num_classes) or labels.dtype != real_dtype(dtype):
        raise UserError(
            f"labels have shape {labels.shape} and dtype {labels.dtype}; expected ({B},) integers or "
            f"({B}, {num_classes}) soft targets of {real_dtype(dtype)}"
        )


class _Turns:
    """Hands out 0, 1, 2, ... to threads, and lets each finish its number when all smaller ones are finished."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._next = 0
        self._due = 0
        self._stopped = False
        self._changed = threading.Condition()

    def take(self) -> int | None:
        with self._changed:
            if self._next == self._count or self._stopped:
                return None
            self._next += 1
            return self._next - 1

    def finish(self, index: int, finish: Callable[[], None]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._due == index or self._stopped)
            if self._stopped:
                return
        finish()
        with self._changed:
            self._due += 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
