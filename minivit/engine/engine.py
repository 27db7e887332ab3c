"""The step engine: a batch in; a loss and gradients, or logits, out.

A batch is cut into micro-batches that fit in cache. Each worker takes its own through the whole forward and backward
pass with single-threaded BLAS, on a replica of the model: the same values, its own gradients. The gradients are added
in a fixed reduction order (`minivit.engine.reduction`), so that the sum has the same bits for any number of workers.
The memory of the caches does not grow with the batch.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from minivit.arrays import Array, namespace, native, on_device_of, real_dtype
from minivit.engine.device_step import DeviceStep, check_precision
from minivit.engine.machine import (
    cores,
    give_freed_pages_back,
    keeping_freed_pages,
    one_at_a_time,
    single_threaded_blas,
)
from minivit.engine.micro_batches import (
    Batch,
    StepOptions,
    Tokens,
    micro_batch_slices,
    pieces_of_tokens,
    predict,
    predict_by_tokens,
    ready,
    train,
)
from minivit.engine.reduction import reduction_plan, vectors_needed
from minivit.engine.threads import take_turns
from minivit.errors import RunError, UserError, expect_whole
from minivit.nn.describe import arrays_in, checksum
from minivit.nn.hooks import is_watched
from minivit.nn.model import Model
from minivit.nn.vit import ViT
from minivit.ops.cross_entropy import check_labels
from minivit.ops.registry import reference_only_here, runs_references_only
from minivit.random import RngLike, as_key

if TYPE_CHECKING:
    from minivit.engine.parallel import ParallelEngine

_MICRO_BATCHES_PER_JOB = 8  # the most that each worker predicts in one job
_CHECKED_NUMBERS = 1 << 18  # numbers of images that are looked at together, so that they and the result fit in cache
_SHARED_TOKENS = 64  # from this number of tokens on, two workers share the tokens of a micro-batch


class Engine:
    """Runs a model over batches of any size.

    Where layers of the model, or their attributes, were replaced since the last call, the engine makes new replicas.

    On the host, the engine checks that labels are in range and images finite. Calls from several threads run one after
    another, even those of different engines.

    Parameters
    ----------
    model : ViT or MaskedModel
        Its gradients receive the total of each step. One that gives losses has no labels, and the loss of each image
        (B, 1) takes the place of logits.
    threads : int, optional
        Workers, each for one core; the machine's cores by default. On a device there is one.
    micro_batch : int, optional
        Images that a worker takes at a time; by default `Model.micro_batch`. On a device the default is all images
        of a training step, and 256 in prediction.
    precision : str, optional
        On a device, how a float32 model computes: "float32" (the default), "tf32", "bfloat16" or "float16"; see
        `minivit.arrays.precision`. Parameters, gradients and logits are float32 in each case.
    reduction_groups : int, optional
        Number of groups in which the gradients of micro-batches are added, and the most workers that can train; by
        default `ViTConfig.reduction_groups`. It has no effect on a device.

    Attributes
    ----------
    dtype : dtype
        The dtype of the computation; images of the model's dtype are converted to it.

    Notes
    -----
    While a layer of the model has hooks, or ops are observed, the engine computes in the caller's process alone, one
    micro-batch after another, with the references of all ops: hooks see every micro-batch in the order of their index,
    and the bits are those of `ops.reference_only`. 16-bit arrays have no references; there the kernels of single ops
    run. A step then takes as long as on one worker without kernels, about 2 to 3 times as long as on two workers. Hooks
    are called with the model's own layers, whose gradients are complete when the step has ended.
    """

    def __init__(
        self,
        model: Model,
        threads: int | None = None,
        micro_batch: int | None = None,
        precision: str | None = None,
        reduction_groups: int | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise UserError(
                f"Engine was given a {type(model).__name__}; expected a ViT or a model of masked pre-training"
            )
        # As ints of Python: a number of NumPy would change the dtype of what it is multiplied with.
        threads = None if threads is None else expect_whole("threads", threads)
        micro_batch = None if micro_batch is None else expect_whole("micro_batch", micro_batch)
        if reduction_groups is not None:
            reduction_groups = expect_whole("reduction_groups", reduction_groups)
        values = model.parameters.store.values
        on_host = namespace(values) is np
        check_precision(precision, values.dtype, on_host)
        self.model = model
        self.threads = (threads or cores()) if on_host else 1
        self.micro_batch = micro_batch or (model.micro_batch if on_host else None)
        self.reduction_groups = reduction_groups or model.config.reduction_groups
        self.precision = precision
        self._first_block = 0
        self._parallel: ParallelEngine | None = None
        self._busy_process: int | None = None  # the process that computes now; a fork copies this attribute too
        self._replicate()
        weakref.finalize(self, give_freed_pages_back).atexit = False

    def _replicate(self) -> None:
        """Make the replica of the layers that the model has now."""
        parameters = self.model.parameters
        values = parameters.store.values
        on_host = namespace(values) is np
        check_precision(self.precision, values.dtype, on_host)
        device = None if on_host else DeviceStep(self.model, self.precision)
        replica = device.replica if device else self.model.replica()
        constants = arrays_in(self.model) if on_host else []  # worker processes have them as they were
        checksums = [checksum(a) for a in constants]
        self._store, self._device, self._replica = parameters.store, device, replica
        self.dtype: Any = replica.parameters.store.values.dtype
        self._replicas: list[Model] = []  # for a training step, one for each gradient vector
        self._constants, self._checksums = constants, checksums
        self._parameters = parameters  # last: after an error the next call makes the replica again

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the worker pool and the replicas: a copy makes its own."""
        derived: dict[str, Any] = {
            "_parameters": None,
            "_store": None,
            "_device": None,
            "_replica": None,
            "_replicas": [],
        }
        return {**vars(self), **derived, "_parallel": None, "_busy_process": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the replica of a copy."""
        vars(self).update(state)
        self._replicate()

    def __repr__(self) -> str:
        how = f"threads={self.threads}, micro_batch={self.micro_batch}, precision={self.precision or self.dtype.name}"
        return f"Engine({type(self.model).__name__} of {self.model.parameters.count:,} parameters, {how})"

    @property
    def num_outputs(self) -> int:
        """The number of logits of an image, 1 for a model that gives losses."""
        return self.model.num_outputs

    @property
    def first_block(self) -> int:
        """The number of the first block that is trained; 0, the default, computes all gradients.

        A training step ends its backward pass there, and the gradients of what comes before are zero. It must be 0 for
        a model whose backward pass does not take `first_block`, such as a masked model.
        """
        return self._first_block

    @first_block.setter
    def first_block(self, number: int) -> None:
        number = expect_whole("first_block", number, least=0)
        if number and not self.model.takes_first_block:
            kind = type(self.model).__name__
            raise UserError(f"first_block is {number}; expected 0, because backward of {kind} takes no first_block")
        self._first_block = number

    def close(self) -> None:
        """End the other workers, after any call that is still running, and give the memory that was kept back.

        A later call starts new workers. An engine that is deleted is closed.
        """
        with one_at_a_time():
            self._end_workers()
            give_freed_pages_back()

    def _end_workers(self) -> None:
        if self._parallel is not None:
            self._parallel.close()
            self._parallel = None
        self._replicas = self._replicas[:1]  # a step that runs keeps its own list

    @contextmanager
    def _computing(self) -> Iterator[bool]:
        """Let one thread at a time into the block; yield whether the model has hooks or an observer is active."""
        lock, memory = (
            (one_at_a_time(), nullcontext()) if self._device else (single_threaded_blas(), keeping_freed_pages())
        )
        with lock, memory:
            if self._is_busy():  # the lock is reentrant, and a second call would overwrite the arrays of the first
                raise RunError("this engine was called while it computes, by a signal handler or a hook")
            try:
                self._busy_process = os.getpid()
                watched = is_watched(self._replica)
                # Arrays of 16 bits have no references.
                with reference_only_here() if watched and self.dtype.itemsize > 2 else nullcontext():
                    yield watched
            finally:
                self._busy_process = None

    def _is_busy(self) -> bool:
        return self._busy_process == os.getpid()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(self, *exception: object) -> None:
        """End the other workers."""
        self.close()

    def loss_and_gradients(
        self, images: Array, labels: Array | None = None, rng: RngLike = None, label_smoothing: float = 0.0
    ) -> Array:
        """Return the mean loss of a batch, and set the model's gradients to those of this loss.

        Parameters
        ----------
        images : Array
            (B, height, width, C) of the model's dtype.
        labels : Array, optional
            (B,) integers below the number of classes, or (B, classes) soft targets. A model that gives losses reads
            none.
        rng : Key, int or np.random.Generator, optional
            The key of the B samples, for dropout, or a seed, or a generator that a seed is drawn from; None runs the
            model in evaluation mode.
        label_smoothing : float
            See `ops.cross_entropy`.

        Returns
        -------
        loss : Array
            0-d.
        """
        return self.training_step(images, labels, rng, label_smoothing)[0]

    def training_step(
        self,
        images: Array,
        labels: Array | None = None,
        rng: RngLike = None,
        label_smoothing: float = 0.0,
        loss_scale: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return the mean loss (0-d) and the logits (B, classes) of a batch, and set the model's gradients.

        The other arguments are those of `loss_and_gradients`.

        Parameters
        ----------
        loss_scale : Array, optional
            0-d, of the dtype of the gradients. The gradients are multiplied by it, the returned loss is not: for
            "float16".
        """
        self._follow_model()
        if self.model.gives_losses:
            labels = None
        elif labels is None:
            raise UserError("labels is None; a model that returns logits needs labels")
        with on_device_of(self._store.values):
            labels = None if labels is None else native(labels)
            return self._training_step(native(images), labels, rng, label_smoothing, loss_scale)

    def _training_step(
        self, images: Array, labels: Array | None, rng: RngLike, label_smoothing: float, loss_scale: Array | None
    ) -> tuple[Array, Array]:
        B = self._check(images, labels)
        xp = namespace(images)
        rng = as_key(rng, B, xp)
        if rng is not None and len(rng.sample_ids) != B:
            raise UserError(f"the key names {len(rng.sample_ids)} samples; expected {B}, one for each image")
        slices = micro_batch_slices(B, self.micro_batch or B)
        dtype = self.model.parameters.complete_gradients().dtype
        logits = xp.empty((B, self.num_outputs), dtype=dtype)
        losses = xp.empty(len(slices), dtype=dtype)
        batch = Batch(ready(images, self.dtype), labels, logits, losses)
        options = StepOptions(rng, label_smoothing, loss_scale, self.first_block)
        with self._computing() as watched:
            if self._device:
                self._device.train(batch, options, slices)
            elif self.threads == 1 or len(slices) == 1 or watched:
                groups = min(self.reduction_groups, len(slices))
                train(self._replicas_for(groups, 1), batch, options, slices, reduction_plan(groups, 1))
            else:
                self._parallel_for(B, trains=True).train(batch, options, self.reduction_groups)
        return xp.asarray(losses.sum()), logits

    def predict(self, images: Array) -> Array:
        """Return logits (B, classes) in evaluation mode; memory does not grow with B, except for the logits."""
        self._follow_model()
        with on_device_of(self._store.values):
            return self._predicted(native(images))

    def _follow_model(self) -> None:
        """Make new replicas if layers of the model, or arrays in them, were changed since the last call."""
        same = self.model.parameters is self._parameters
        if same and self._checksums == [checksum(a) for a in self._constants]:
            return
        with one_at_a_time():
            if not self._is_busy():  # otherwise the call is refused
                self.close()
                self._replicate()

    def _predicted(self, images: Array) -> Array:
        B = self._check(images)
        xp = namespace(images)
        dtype = self._store.values.dtype
        logits = xp.empty((B, self.num_outputs), dtype=dtype)
        with self._computing() as watched:
            if self._device:
                self._device.predict(images, logits, self.micro_batch)
            elif watched:
                slices = micro_batch_slices(B, self.micro_batch or B)
                predict(self._replica, images, logits, slices, range(len(slices)))
            else:
                assert self.micro_batch is not None
                most = min(B, self.micro_batch * self.threads * _MICRO_BATCHES_PER_JOB)
                for part in micro_batch_slices(B, most):
                    some = xp.ascontiguousarray(images[part])
                    self._predict(some, logits[part], self.micro_batch, most)
        return logits

    def _predict(self, images: Array, logits: Array, micro_batch: int, most: int) -> None:
        B, config = len(images), self.model.config
        N = config.num_tokens
        few = micro_batch >= most and N >= _SHARED_TOKENS
        few = few and self._replica.is_standard() and not runs_references_only()
        pieces = pieces_of_tokens(N) if few else []
        if self.threads > 1 and (pieces or micro_batch < B):
            self._parallel_for(most).predict(images, logits, pieces)
        elif pieces:
            tokens = Tokens.of(config, B, images.dtype, np.empty)

            replica = self._replica
            assert isinstance(replica, ViT)

            def work(number: int, wait: Callable[[], None]) -> None:
                predict_by_tokens(replica, images, logits, tokens, pieces, number, wait)

            take_turns(work, len(pieces))
        else:
            slices = micro_batch_slices(B, micro_batch)
            predict(self._replica, images, logits, slices, range(len(slices)))

    def _parallel_for(self, B: int, trains: bool = False) -> ParallelEngine:
        if self._parallel is None or not self._parallel.fits(B, trains):
            # Imported here because one worker does not need it, and it takes as long as a small prediction.
            from minivit.engine.parallel import ParallelEngine

            trains = trains or (self._parallel is not None and self._parallel.trains)
            self._end_workers()
            assert self.micro_batch is not None
            count = -(-B // self.micro_batch)
            workers = min(self.threads, max(2, count))
            replicas = self._replicas_for(min(self.reduction_groups, count), workers) if trains else []
            self._parallel = ParallelEngine(self._replica, replicas, workers, self.micro_batch, B)
        return self._parallel

    def _replicas_for(self, groups: int, workers: int) -> list[Model]:
        """Return a replica for each gradient vector of a training step; the first has the model's own vector."""
        if not self._replicas:
            self._replica.parameters.store.share_gradients(self._store)
            self._replicas.append(self._replica)
        while len(self._replicas) < vectors_needed(groups, workers):
            self._replicas.append(self._replica.replica())
        return self._replicas

    def _check(self, images: Array, labels: Array | None = None) -> int:
        namespace(images) if labels is None else namespace(images, labels)
        (self._replica if images.dtype == self.dtype else self.model).check_images(images)
        B = len(images)
        if namespace(images) is np:
            for part in micro_batch_slices(B, max(1, _CHECKED_NUMBERS // images[0].size)):
                if not (finite := np.isfinite(images[part])).all():
                    bad = part.start + next(i for i, of_image in enumerate(finite) if not of_image.all())
                    raise UserError(f"image {bad} of the batch holds NaN or infinity; every value must be finite")
        if labels is not None:
            check_labels(labels, B, self.model.config.num_classes, (real_dtype(self._store.values.dtype),))
        return B
