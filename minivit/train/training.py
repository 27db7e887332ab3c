"""Training without files: steps, metrics, averages and the choice of the best epoch.

`Trainer` adds the run folder, and `fit` is for Python users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from minivit.arrays import Array, namespace
from minivit.data.dataset import Dataset, split_validation
from minivit.engine import AnyEngine
from minivit.nn.model import Model
from minivit.train.averaging import Averaging
from minivit.train.diagnostics import (
    NonFinitePlace,
    NotFiniteError,
    first_non_finite_parameter,
    layer_of,
    where_evaluation_is_not_finite,
)
from minivit.train.evaluation import Score, score
from minivit.train.nan_dump import TRAINING, Batch, batch_of_evaluation, batch_of_step
from minivit.train.recipe import Recipe, make_optimizer
from minivit.train.state import TrainState
from minivit.train.step import DataLoader, StepMetrics, TrainStep


class Training:
    """The state of a model that is trained, and what happens in a step and at the end of an epoch.

    Parameters
    ----------
    engine : Engine or LayerEngine
        The engine of the model that is trained.
    dataset : Dataset
        The images, with the mean and deviation of the recipe if it has them.
    recipe : Recipe
        The recipe; `Recipe.resolved` has filled it in.

    Raises
    ------
    UserError
        The labels or the validation share do not fit the images.
    """

    def __init__(self, engine: AnyEngine, dataset: Dataset, recipe: Recipe) -> None:
        self.engine, self.model, self.dataset, self.recipe = engine, engine.model, dataset, recipe
        self.train_index, self.validation_index = split_validation(dataset, recipe.validation, recipe.seed)
        self.steps_per_epoch = -(-len(self.train_index) // recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.state = TrainState()
        self._samples: Array | None = None  # of the last step
        store = self.model.parameters.store
        self.optimizer = make_optimizer(recipe, self.model, engine.threads)
        self.averaging = Averaging(store, recipe)
        self.data_loader = DataLoader(dataset, self.train_index, recipe, namespace(store.values))
        self.train_step = TrainStep(engine, self.optimizer, self.data_loader, recipe)

    @property
    def gives_losses(self) -> bool:
        """Whether the model gives the losses of images in place of logits."""
        return isinstance(self.model, Model) and self.model.gives_losses

    def batches(self, epoch: int, done: int = 0) -> Iterator[Array]:
        """Yield the indices of the images of each batch of an epoch, from 0, after the first `done`, for `take_step`.

        The time of a step includes the time spent waiting for its images.
        """
        batches = self.data_loader.batches(epoch, done)
        while True:
            self.train_step.metrics.start_clock()
            samples = next(batches, None)
            if samples is None:
                return
            yield samples

    def take_step(self, samples: Array) -> None:
        """Take a step on the images with the indices `samples`; `read_steps` reads its metrics."""
        step = self.state.step
        lr = self.recipe.learning_rate(step, self.steps_per_epoch) * 0.5**self.state.rollbacks
        self._samples = samples
        self.train_step.run(step, samples, lr)
        self.averaging.after_step()
        self.state.step += 1

    def read_steps(self) -> Iterator[StepMetrics]:
        """Wait for the steps since the last call, add their metrics to the state, and yield them.

        Raises
        ------
        RunError
            A loss or a gradient is not finite.
        """
        state = self.state
        for step in self.train_step.metrics.read():
            if step.stopped:
                place = self.train_step.where_not_finite(step)
                batch = batch_of_step(self.data_loader, step.number, step.samples, self.engine.dtype)
                raise self._not_finite(step.number, place, self.engine, batch)
            images = len(step.samples)
            state.seconds += step.seconds
            state.epoch_seconds += step.seconds
            state.epoch_images += images
            state.epoch_loss += step.loss * images
            state.epoch_correct += step.correct
            yield step

    def _metrics(self, epoch: int) -> dict[str, Any]:
        """Return the metrics of the training images of an epoch that has ended."""
        state = self.state
        accuracy = {} if self.gives_losses else {"train_accuracy": state.epoch_correct / state.epoch_images}
        return {
            "epoch": epoch,
            "step": state.step,
            "learning_rate": self.optimizer.lr,
            "train_loss": state.epoch_loss / state.epoch_images,
            **accuracy,
            "images_per_second": state.epoch_images / state.epoch_seconds,
            "seconds": state.seconds,
        }

    def end_epoch(self, epoch: int) -> dict[str, Any]:
        """Return the metrics of an epoch, from 1, that has ended, and choose the best one."""
        state, dataset = self.state, self.dataset
        metrics = self._metrics(epoch)
        self._expect_finite_parameters()
        if self.averaging.after_epoch(epoch):
            state.forget_best()  # the best epoch is one with an average
        validation = None
        if len(self.validation_index):
            held_out = dataset.train_images[self.validation_index], dataset.train_labels[self.validation_index]
            with self.averaging.applied():
                validation = self._evaluate(self.engine, *held_out, "validation")
            metrics["val_loss"] = validation.loss
            if validation.accuracy is not None:
                metrics["val_accuracy"] = validation.accuracy
        state.choose(epoch, validation, self.recipe.choose_by)
        state.begin_epoch()
        return metrics

    def _expect_finite_parameters(self) -> None:
        if (name := first_non_finite_parameter(self.model)) is not None:
            step, samples = self.state.step, self._samples
            place = NonFinitePlace(f"the parameter {name} holds NaN or infinity after it", layer_of(name))
            batch = batch_of_step(self.data_loader, step, samples, self.engine.dtype)
            raise self._not_finite(step, place, self.engine, batch)

    def _evaluate(self, engine: AnyEngine, images: Array, labels: Array, part: str) -> Score:
        mean, std = self.dataset.mean, self.dataset.std
        found = score(engine, images, labels, mean, std)
        if not math.isfinite(found.loss):
            place = where_evaluation_is_not_finite(engine, images, mean, std)
            place = place._replace(words=f"on the {part} images after it, {place.words}")
            index = self.validation_index if part == "validation" else None
            batch = batch_of_evaluation(engine, images, labels, mean, std, self.recipe.batch_size, part, index)
            raise self._not_finite(self.state.step, place, engine, batch, part)
        return found

    def _not_finite(
        self,
        step: int,
        place: NonFinitePlace,
        engine: AnyEngine,
        batch: Callable[[], Batch | None],
        part: str = TRAINING,
    ) -> NotFiniteError:
        """Return the error that stops training at `step`, from 1; `batch` makes the images of the computation.

        They are images of `part`: "training", "validation" or "test".
        """
        return NotFiniteError(
            f"training is not finite at step {step}: {place.words}; a smaller lr than {self.recipe.lr:g} often helps",
            step,
            place.words,
        )
