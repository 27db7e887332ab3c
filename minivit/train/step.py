"""One training step: a batch, its loss and gradients, clipping, the update and the metrics.

On a device no step waits for the host: the loss, the clipping and the decision to stop stay on the device, and the host
reads the metrics of several steps together. After the first loss or gradient that is not finite, no step changes
the parameters. With float16, a gradient that overflows because of the loss scale only skips its step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minivit.arrays import Array, namespace, on_device_of, to_backend, to_host
from minivit.data.batches import batches, epoch_order
from minivit.data.dataset import Dataset
from minivit.data.on_demand import Pixels, as_on_demand, read_ahead
from minivit.engine import AnyEngine, Engine
from minivit.nn.vit import ViT
from minivit.ops import grad_scaler
from minivit.ops.augment import channel_scale, normalized, training_images
from minivit.ops.cross_entropy import check_labels
from minivit.ops.metrics import record_metrics
from minivit.ops.update_rules import gradient_norm
from minivit.random import Key
from minivit.train.augmentation import Augmentation
from minivit.train.diagnostics import NonFinitePlace, where_not_finite
from minivit.train.groups import first_trained_block, frozen_spans
from minivit.train.optimizers import Optimizer
from minivit.train.recipe import Recipe

_READ_EVERY = 20  # steps on a device


class TrainStep:
    """The training step of a run.

    Parameters
    ----------
    engine : Engine or LayerEngine
        Computes the loss and the gradients.
    optimizer : Optimizer
        Updates the parameters of the engine's model.
    data_loader : DataLoader
        Makes the batches, on the model's device.
    recipe : Recipe
        Says how labels are smoothed and gradients clipped.

    Attributes
    ----------
    metrics : MetricsBuffer
        The metrics of the last steps. When it is full it must be read before the next step; on the host, after each.
    """

    def __init__(self, engine: AnyEngine, optimizer: Optimizer, data_loader: DataLoader, recipe: Recipe) -> None:
        store = engine.model.parameters.store
        values = store.values
        self.engine, self.optimizer, self.data_loader, self._store = engine, optimizer, data_loader, store
        self._frozen = frozen_spans(engine.model, optimizer.groups)
        if isinstance(engine, Engine) and isinstance(engine.model, ViT) and engine.model.takes_first_block:
            engine.first_block = first_trained_block(optimizer.groups, engine.model.config.depth)
        self.label_smoothing = recipe.label_smoothing
        self.grad_scaler = GradScaler(values, recipe.clip_norm, scaled=engine.dtype == np.float16)
        self.metrics = MetricsBuffer(values, 1 if namespace(values) is np else _READ_EVERY)

    def run(self, step: int, samples: Array, lr: float) -> None:
        """Take the step with the index `step`, from 0, on the images with the indices `samples` (B,).

        Its time is measured from the last call of ``metrics.start_clock``.
        """
        # A batch
        images, labels, key = self.data_loader.batch(samples, step, self.engine.dtype)
        # Its loss and gradients
        scale = self.grad_scaler.loss_scale
        loss, logits = self.engine.training_step(images, labels, key, self.label_smoothing, scale)
        for span in self._frozen:  # the norm is that of the other gradients
            self._store.gradients[span] = 0
        # Clipping; NaN if nothing may be updated
        factor = self.grad_scaler.factor(loss, self._store.gradients)
        # The update
        self.optimizer.lr = lr
        self.optimizer.step(factor)
        # The metrics
        self.metrics.record(key, lr, loss, logits, labels, self.grad_scaler.stopped)

    def where_not_finite(self, step: StepMetrics) -> NonFinitePlace:
        """Return where NaN or infinity appears first in a step with `stopped`, which did not change the parameters."""

        def piece(part: slice) -> tuple[Array, Key]:  # of the whole batch, whose images may be mixed
            images, _, key = self.data_loader.batch(step.samples, step.number - 1, self.engine.dtype)
            return images[part], key[part]

        def backward() -> None:  # computes them again: they may be those of a later step
            images, labels, key = self.data_loader.batch(step.samples, step.number - 1, self.engine.dtype)
            self.engine.training_step(images, labels, key, self.label_smoothing, self.grad_scaler.loss_scale)
            for span in self._frozen:
                self._store.gradients[span] = 0

        return where_not_finite(self.engine, len(step.samples), piece, backward)


class DataLoader:
    """The uint8 training images, on the model's device, and the batches that are made from them there.

    Images that are read when they are needed (`minivit.data.on_demand`) stay on the host, and each batch is copied.

    Parameters
    ----------
    dataset : Dataset
        Its labels are checked here, on the host.
    index : Array
        The indices of the images that are trained on.
    recipe : Recipe
        Gives the seed and the augmentation.
    library : module
        The array library of the model.
    """

    def __init__(self, dataset: Dataset, index: Array, recipe: Recipe, library: Any) -> None:
        labels = dataset.train_labels
        check_labels(labels, len(labels), len(dataset.class_names), (np.dtype(recipe.dtype),))
        self._library, self._index, self._recipe = library, index, recipe
        self._labels = to_backend(labels, library)
        images = dataset.train_images
        self._on_demand = as_on_demand(images)
        self._images = images if self._on_demand is not None else to_backend(images, library)
        self._read: tuple[Array, Pixels] | None = None  # the indices of a batch, and its images
        self.augmentation = Augmentation(recipe, -(-len(index) // recipe.batch_size))
        self._classes = len(dataset.class_names)
        self._scale, self._shift = channel_scale(dataset.mean, dataset.std, recipe.dtype, library)

    def order(self, epoch: int) -> Array:
        """Return the indices of the training images in the order of an epoch, on the device.

        They are sorted on the host, where the order is the same for all devices, and copied once an epoch. They stay on
        the host if images are read there when they are needed.
        """
        order = self._index[epoch_order(len(self._index), self._recipe.seed, epoch)]
        return order if self._on_demand is not None else to_backend(order, self._library)

    def batches(self, epoch: int, done: int = 0) -> Iterator[Array]:
        """Yield, for each batch of an epoch after the first `done`, the indices of its images, to be given to `batch`.

        Images that are read on demand are read while the caller works on the previous batch.
        """
        parts = list(batches(self.order(epoch), self._recipe.batch_size))[done:]
        if self._on_demand is None:
            yield from parts
            return
        for samples, pixels in zip(parts, read_ahead(self._images, parts), strict=True):
            self._read = samples, pixels
            yield samples

    def batch(self, samples: Array, step: int, dtype: Any) -> tuple[Array, Array, Key]:
        """Return the images (B, height, width, C) with the indices `samples`, their labels, and the step's key.

        The images are augmented for this step, normalised, and of `dtype`. The labels are (B,) integers, or, where the
        images were mixed, (B, classes) soft targets. Only mixing depends on the batch and not on each sample alone.
        """
        pixels = None
        if self._on_demand is not None:
            if self._read is not None and self._read[0] is samples:
                pixels = self._read[1]
            else:
                pixels = np.asarray(self._on_demand[to_host(samples)])
            pixels, samples = to_backend(pixels, self._library), to_backend(samples, self._library)
        key = Key(self._recipe.seed, step, samples)
        if pixels is None and self.augmentation.is_plain:  # one kernel on a device
            images = training_images(
                self._images,
                key,
                crop_padding=self._recipe.crop_padding,
                flip=self._recipe.flip,
                scale=self._scale,
                shift=self._shift,
                dtype=dtype,
            )
        else:
            if pixels is None:
                pixels = self._library.take(self._images, samples, axis=0)
            images = normalized(self.augmentation.images(pixels, key), self._scale, self._shift, dtype)
        return *self.augmentation.mixed(images, self._labels[samples], self._classes, step), key


class GradScaler:
    """Clips gradients, stops at a loss or gradient that is not finite, and keeps the loss scale; see `ops.grad_scaler`.

    Parameters
    ----------
    values : Array
        The flat vector of parameters; its library, device and dtype are those of the scaler's state.
    clip_norm : float
        The largest global norm of the gradients; 0 for no clipping.
    scaled : bool
        Whether the loss is scaled, as float16 requires.
    """

    def __init__(self, values: Array, clip_norm: float, scaled: bool) -> None:
        self._clip_norm, self._scaled = clip_norm, scaled
        with on_device_of(values):
            self._state = namespace(values).zeros(4, dtype=values.dtype)
            self._state[grad_scaler.SCALE] = grad_scaler.FIRST_SCALE if scaled else 1.0

    @property
    def loss_scale(self) -> Array | None:
        """The factor of the next step's loss, and so of its gradients; 0-d, None if the loss is not scaled."""
        return self._state[grad_scaler.SCALE] if self._scaled else None

    @property
    def stopped(self) -> Array:
        """1 after a loss or gradient that was not finite, otherwise 0; a 0-d array."""
        return self._state[grad_scaler.STOPPED]

    def factor(self, loss: Array, gradients: Array) -> Array:
        """Return the factor of the flat vector `gradients` for the optimiser, 0-d; NaN if nothing may be updated."""
        with on_device_of(self._state):
            grad_scaler.update_grad_scaler(
                self._state,
                loss,
                gradient_norm(gradients),
                clip_norm=self._clip_norm,
                scaled=self._scaled,
                growth_steps=grad_scaler.GROWTH_STEPS,
                largest_scale=grad_scaler.LARGEST_SCALE,
            )
        return self._state[grad_scaler.FACTOR]

    def state(self) -> tuple[float, int] | None:
        """Return the loss scale and the good steps since it last changed, or None; waits for the device."""
        if not self._scaled:
            return None
        state = to_host(self._state)
        return float(state[grad_scaler.SCALE]), int(state[grad_scaler.GOOD])

    def load_state(self, state: tuple[float, int]) -> None:
        """Set the state to what `state` returned, and go on after a stop; a loss that is not scaled has no scale."""
        with on_device_of(self._state):
            self._state[grad_scaler.STOPPED] = 0.0
            if self._scaled:
                self._state[grad_scaler.SCALE], self._state[grad_scaler.GOOD] = state


class StepMetrics(NamedTuple):
    """The metrics of one step."""

    number: int  # of the step, from 1
    samples: Array  # (B,) the indices of the images, on the device
    lr: float
    loss: float
    correct: int  # images
    stopped: bool  # whether a loss or gradient was not finite, in this step or before
    seconds: float


class MetricsBuffer:
    """The metrics of the last steps, kept on their device and read together, so that no step waits for the host.

    Parameters
    ----------
    values : Array
        An array with the library, the device and the dtype of the metrics.
    size : int
        The number of steps that the buffer holds.
    """

    def __init__(self, values: Array, size: int) -> None:
        self._records = namespace(values).zeros((size, 3), dtype=values.dtype)
        self._steps: list[tuple[Key, float]] = []  # key and learning rate of each record
        self._started = 0.0

    @property
    def full(self) -> bool:
        """Whether it must be read before the next step."""
        return len(self._steps) == len(self._records)

    def start_clock(self) -> None:
        """Call this before the images of a step are waited for; the time begins with the first step not yet read."""
        if not self._steps:
            self._started = time.perf_counter()

    def record(self, key: Key, lr: float, loss: Array, logits: Array, labels: Array, stopped: Array) -> None:
        """Keep the metrics of a step; see `ops.metrics.record_metrics`."""
        record_metrics(self._records[len(self._steps)], loss, logits, labels, stopped)
        self._steps.append((key, lr))

    def read(self) -> list[StepMetrics]:
        """Return the metrics of the steps since the last call, oldest first; waits for the device.

        The time of these steps is divided among them by their numbers of images.
        """
        if not self._steps:
            return []
        records = to_host(self._records[: len(self._steps)]).tolist()
        steps, self._steps = self._steps, []
        per_image = (time.perf_counter() - self._started) / sum(len(key.sample_ids) for key, _ in steps)
        return [
            StepMetrics(
                key.step + 1, key.sample_ids, lr, loss, int(correct), stopped != 0, per_image * len(key.sample_ids)
            )
            for (key, lr), (loss, correct, stopped) in zip(steps, records, strict=True)
        ]
