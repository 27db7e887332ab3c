"""The engine of a layer that is no ViT: micro-batches one after another, on the library of its parameters."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from minivit.arrays import Array, namespace, on_device_of
from minivit.engine.device_step import DEVICE_BATCH
from minivit.engine.micro_batches import Batch, StepOptions, accumulate, micro_batch_slices, predict
from minivit.nn.layer import Layer
from minivit.random import Key


class LayerEngine:
    """Runs any layer with the results of a classifier, in the caller's process; see `Engine` for a ViT.

    Parameters
    ----------
    model : Layer
        Its forward pass takes images (B, height, width, C) and returns logits (B, `num_outputs`).
    num_outputs : int
        The number of logits of an image.
    micro_batch : int, optional
        Images that the layer takes at a time; by default all of a training step, and 256 in prediction.
    """

    precision: str | None = None
    threads = 1

    def __init__(self, model: Layer, num_outputs: int, micro_batch: int | None = None) -> None:
        self.model, self.num_outputs, self.micro_batch = model, num_outputs, micro_batch

    @property
    def dtype(self) -> Any:
        """The dtype of the computation."""
        return self.model.parameters.store.values.dtype

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing has to be ended."""

    def training_step(
        self,
        images: Array,
        labels: Array,
        rng: Key | None = None,
        label_smoothing: float = 0.0,
        loss_scale: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return the mean loss, 0-d, and the logits of a batch, and set the gradients; see `Engine.training_step`."""
        slices = micro_batch_slices(len(images), self.micro_batch or len(images))
        with on_device_of(images):
            xp = namespace(images, labels)
            logits = xp.empty((len(images), self.num_outputs), dtype=self.dtype)
            losses = xp.empty(len(slices), dtype=self.dtype)
            options = StepOptions(rng, label_smoothing, loss_scale, 0)
            self.model.parameters.clear_gaps()
            accumulate(self.model, Batch(images, labels, logits, losses), options, slices, range(len(slices)))
            return xp.asarray(losses.sum()), logits

    def predict(self, images: Array) -> Array:
        """Return logits (B, `num_outputs`) in evaluation."""
        slices = micro_batch_slices(len(images), self.micro_batch or DEVICE_BATCH)
        with on_device_of(images):
            logits = namespace(images).empty((len(images), self.num_outputs), dtype=self.dtype)
            predict(self.model, images, logits, slices, range(len(slices)))
        return logits
