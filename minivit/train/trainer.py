"""The training loop: epochs of steps, a checkpoint now and then, the test set once at the end.

All randomness derives from the recipe's seed, the step and the images' numbers, so a run that was killed and resumed
ends in the same bits as one that was not. On a device the host runs ahead: it reads what steps came to every so often,
and a guard on the device sees to it that nothing is updated from the first loss on that is not finite.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from minivit import arrays
from minivit.arrays import Array, on_device_of
from minivit.data.batches import batches
from minivit.data.dataset import Dataset, split_validation
from minivit.engine import Engine
from minivit.engine.device_step import DEVICE_BATCH
from minivit.errors import RunError, UserError
from minivit.files import locked
from minivit.nn.vit import ViT
from minivit.train.data_loader import Feed
from minivit.train.diagnostics import first_non_finite_parameter
from minivit.train.evaluate import Evaluation, evaluate
from minivit.train.interrupt import Interrupt, Interrupted
from minivit.train.measures import epoch_metrics, metrics_until, run_result, step_report
from minivit.train.memory import image_bytes, room
from minivit.train.not_finite import not_finite, where_evaluation_is_not_finite
from minivit.train.reporter import Reporter
from minivit.train.run_folder import Run
from minivit.train.schedules import learning_rate
from minivit.train.setup import make_optimizer, model_config
from minivit.train.state import Progress
from minivit.train.step import Steps


class Trainer:
    """One run: its data, model, optimiser and place.

    Parameters
    ----------
    run, dataset, threads, backend, precision, micro_batch
        See `train`.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        threads: int | None = None,
        backend: str = "numpy",
        precision: str | None = None,
        micro_batch: int | None = None,
    ) -> None:
        config = model_config(run.recipe, dataset)
        recipe = replace(
            run.recipe,
            micro_batch=run.recipe.micro_batch or config.micro_batch,
            reduction_groups=run.recipe.reduction_groups or config.reduction_groups,
        )
        self._library = arrays.backend(backend)
        on_host = self._library is np
        if on_host and micro_batch is not None:
            raise UserError("on the host the micro-batch is the recipe's: set it there")
        self.run, self.dataset, self.recipe = Run(run.path, recipe), dataset, recipe
        self.backend, self.precision = backend, precision
        self.micro_batch = recipe.micro_batch if on_host else micro_batch
        self.train_index, self.validation_index = split_validation(dataset, recipe.validation, recipe.seed)
        self.steps_per_epoch = -(-len(self.train_index) // recipe.batch_size)
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.progress = Progress()
        self.fingerprint = dataset.fingerprint()
        self.bytes_per_image = 0
        with self._room("before the first step"):
            self.model = ViT(config, seed=recipe.seed, dtype=recipe.dtype, backend=backend)
            self.optimizer = make_optimizer(recipe, self.model)
            self.engine = Engine(self.model, threads, self.micro_batch, precision, recipe.reduction_groups)
            self.bytes_per_image = image_bytes(config, self.engine.dtype)
            self.feed = Feed(dataset, self.train_index, recipe, self._library)
            self.steps = Steps(self.engine, self.optimizer, self.feed, recipe, precision == "float16", on_host)

    def fit(self, reporter: Reporter, resume: bool, checkpoint_seconds: float) -> dict[str, Any]:
        """Train from the start, or from the last checkpoint, to the end; return the result."""
        if resume and (result := self.run.result()) is not None:
            return result
        values, elsewhere = self.model.parameters.store.values, self._room("outside of a step")
        with locked(self.run.path), Interrupt() as interrupt, on_device_of(values), self.engine, elsewhere:
            self._begin(resume)
            reporter.started(self.run, self.model, self.progress.step, self.total_steps, self.steps_per_epoch)
            self._train(reporter, interrupt, checkpoint_seconds)
            return self._finish()

    def _begin(self, resume: bool) -> None:
        if resume and self.run.has_state():
            self.progress = self.run.load_state(self.model, self.optimizer, self.fingerprint)
            self.steps.grad_scaler.go_on_with(self.progress.scaling)
            self.run.write_metrics(metrics_until(self.run, self.progress.step, self.steps_per_epoch))
        elif resume and self.run.metrics():
            raise UserError(f"{self.run.path} has lost last/training.safetensors; bring it back, or begin a new run")
        else:
            self._checkpoint()

    def _train(self, reporter: Reporter, interrupt: Interrupt, checkpoint_seconds: float) -> None:
        progress, recipe = self.progress, self.recipe
        saved = time.monotonic()
        while progress.step < self.total_steps:
            epoch, done = divmod(progress.step, self.steps_per_epoch)
            for samples in list(batches(self.feed.order(epoch), recipe.batch_size))[done:]:
                self._step(samples)
                if self.steps.full:
                    self._hear(reporter)
                if progress.step % self.steps_per_epoch == 0:
                    self._hear(reporter)
                    reporter.epoch_ended(self._end_epoch(epoch + 1))
                    saved = time.monotonic()
                elif interrupt.asked or time.monotonic() - saved >= checkpoint_seconds:
                    self._hear(reporter)
                    self._checkpoint()
                    saved = time.monotonic()
                if interrupt.asked and progress.step < self.total_steps:
                    raise Interrupted(progress.step)

    def _step(self, samples: Array) -> None:
        """Do a step on the images numbered `samples`; `_hear` tells what came of it."""
        progress, recipe = self.progress, self.recipe
        warmup_steps = round(recipe.warmup_epochs * self.steps_per_epoch)
        lr = learning_rate(progress.step, self.total_steps, recipe.lr, warmup_steps, recipe.schedule)
        with self._room(f"at step {progress.step + 1}", min(len(samples), self.micro_batch or len(samples))):
            self.steps.do(progress.step + 1, samples, lr)
        progress.step += 1

    def _hear(self, reporter: Reporter) -> None:
        """Wait for the steps that are under way, and tell what they came to."""
        progress, batch_size = self.progress, self.recipe.batch_size
        for step in self.steps.heard():
            if step.stopped:
                raise self._not_finite(step.number, self.steps.where_not_finite(step))
            progress.add(len(step.samples), step.loss, step.correct, step.seconds)
            reporter.stepped(step_report(step, progress, self.steps_per_epoch, self.total_steps, batch_size))

    def _end_epoch(self, epoch: int) -> dict[str, Any]:
        progress, dataset = self.progress, self.dataset
        metrics = epoch_metrics(epoch, progress, self.optimizer.lr)
        metrics |= {"backend": self.backend, "precision": self.precision or self.recipe.dtype}
        self._expect_finite_parameters()
        accuracy = progress.best_accuracy  # without a validation part every epoch is the best so far
        if len(self.validation_index):
            held_out = dataset.train_images[self.validation_index], dataset.train_labels[self.validation_index]
            measured = self._evaluate(self.engine, *held_out, "validation")
            metrics |= {"val_loss": measured.loss, "val_accuracy": measured.accuracy}
            accuracy = measured.accuracy
        if accuracy >= progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = accuracy, epoch
            self.run.save_model("best", self.model, dataset)
        self.run.write_metrics([*self.run.metrics(), metrics])
        progress.begin_epoch()
        self._checkpoint()
        return metrics

    def _expect_finite_parameters(self) -> None:
        if (name := first_non_finite_parameter(self.model)) is not None:
            raise self._not_finite(self.progress.step, f"the parameter {name} holds NaN or infinity after it")

    def _evaluate(self, engine: Engine, images: Array, labels: Array, part: str) -> Evaluation:
        mean, std, step = self.dataset.mean, self.dataset.std, self.progress.step
        with self._room(f"on the {part} images after step {step}", min(len(images), self.micro_batch or DEVICE_BATCH)):
            measured = evaluate(engine, images, labels, mean, std)
        if not math.isfinite(measured.loss):
            where = where_evaluation_is_not_finite(engine, images, mean, std)
            raise self._not_finite(step, f"on the {part} images after it, {where}")
        return measured

    def _not_finite(self, step: int, where: str) -> RunError:
        return not_finite(step, where, self.run.path / "last", self.precision)

    def _room(self, when: str, at_once: int = 0) -> AbstractContextManager[None]:
        """Return a context in which a device that is too small for `at_once` images says what would help."""
        return room(self._library, self.bytes_per_image, at_once, when, self.run)

    def _checkpoint(self) -> None:
        self._expect_finite_parameters()
        self.progress.scaling = self.steps.grad_scaler.scaling() or self.progress.scaling
        self.run.save_model("last", self.model, self.dataset)
        self.run.save_state(self.model, self.optimizer, self.progress, self.fingerprint)

    def _finish(self) -> dict[str, Any]:
        from minivit.train.curves import save_curves
        from minivit.weights import load_model

        best = load_model(self.run.path / "best", dtype=self.recipe.dtype, backend=self.backend)
        with Engine(best, self.engine.threads, self.micro_batch, precision=self.precision) as engine:
            measured = self._evaluate(engine, self.dataset.test_images, self.dataset.test_labels, "test")
        images, validated = len(self.train_index) * self.recipe.epochs, len(self.validation_index) > 0
        result = {"run": str(self.run.path), **run_result(self.progress, measured, images, validated)}
        result["curves"] = save_curves(self.run.metrics(), self.run.path / "curves.png")
        self.run.write_result(result)
        return result


def train(
    run: Run,
    dataset: Dataset,
    reporter: Reporter,
    *,
    resume: bool = False,
    threads: int | None = None,
    checkpoint_seconds: float = 60.0,
    backend: str = "numpy",
    precision: str | None = None,
    micro_batch: int | None = None,
) -> dict[str, Any]:
    """Train the model of a run's recipe on a data set.

    Parameters
    ----------
    run : Run
        A new run folder, or one to go on with.
    dataset : Dataset
        The images that the recipe names.
    reporter : Reporter
        Is told of every step and epoch.
    resume : bool
        Go on from the last checkpoint; a finished run returns its result again.
    threads : int, optional
        Worker threads; they change the time and no bit of the result.
    checkpoint_seconds : float
        Longest time between two checkpoints.
    backend : str
        "numpy", "cupy" or, for another device, such as "cupy:1". A run may go on with another one than before.
    precision : str, optional
        On a GPU "float32", "tf32", "bfloat16" or "float16"; see `minivit.arrays.precision`. Parameters stay float32.
    micro_batch : int, optional
        Images that a device takes at a time; by default the whole batch. On the host the recipe says it.

    Returns
    -------
    dict
        What result.json holds: `run`, `test_accuracy`, `seconds` of training, `images_per_second` and more.

    Raises
    ------
    Interrupted
        The user asked to stop; the run is saved.
    RunError
        The loss is not finite, a file cannot be written, or a device has too little memory (`OutOfMemoryError`, which
        says what would fit); the last good checkpoint is kept.
    UserError
        There is no such backend or precision here.
    """
    return Trainer(run, dataset, threads, backend, precision, micro_batch).fit(reporter, resume, checkpoint_seconds)
